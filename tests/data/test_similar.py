from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_core.data.similar import SimilarTexts, word_grams


def jaccard(a: str, b: str) -> float:
    return len(word_grams(a) & word_grams(b)) / len(word_grams(a) | word_grams(b))


def is_found(a: str, b: str, threshold: float = 0.9) -> bool:
    index = SimilarTexts(threshold)
    index.add(index.sketch(a))
    return index.match(index.sketch(b)) == 0


def test_case_and_punctuation_do_not_make_texts_different() -> None:
    assert is_found("Where is my parcel?", "where is my parcel")
    assert is_found("Refund!", "refund")
    assert is_found("why did my top-up fail, it didn’t work", "Why did my top up fail? It didn't work")


def test_signs_emoji_and_the_order_of_two_words_do() -> None:
    for a, b in (("4 + 3", "4 - 3"), ("great 👍", "great 👎"), ("4-3", "4 3"), ("36 82", "82 36"), ("!!", "??"), ("'", "?")):
        assert not is_found(a, b), (a, b)


def test_scripts_without_spaces_are_compared_by_character() -> None:
    a = "我的包裹在哪里我已经等了三个星期了请帮我查一下谢谢您"
    assert len(word_grams(a)) > 20
    assert is_found(a + "了", a)


def test_a_short_text_is_one_gram() -> None:
    assert word_grams("card payment") == {"card payment"}
    assert word_grams("") == {""}


def test_lsh_finds_all_but_a_few_of_the_pairs_that_a_full_comparison_finds() -> None:
    draw = random.Random(0)
    bases = [[draw.choice("abcdefghijklmnopqrstuvwxyz") * 3 for _ in range(40)] for _ in range(60)]
    texts = [" ".join(base) for base in bases] + [" ".join([*base[:-1], "changed"]) for base in bases]
    for threshold in (0.3, 0.6, 0.9):
        index = SimilarTexts(threshold)
        for text in texts[:60]:
            index.add(index.sketch(text))
        found = [index.match(index.sketch(text)) for text in texts[60:]]
        full = [min((i for i in range(60) if jaccard(texts[i], text) >= threshold), default=None) for text in texts[60:]]
        assert len(full) - full.count(None) > 55
        assert sum(a != b for a, b in zip(found, full, strict=True)) <= 1


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet="ab cd.", max_size=30), st.text(alphabet="ab cd.", max_size=30))
def test_what_is_found_passes_the_exact_comparison(a: str, b: str) -> None:
    if is_found(a, b, 0.5):
        assert jaccard(a, b) >= 0.5
