"""Rows of many prompts answered together are what each prompt answers alone."""

from __future__ import annotations

from collections import deque
from functools import cache

import pytest
import torch
from helpers import random_ids, random_prefix
from hypothesis import given, settings
from hypothesis import strategies as st
from served_prompts import a_prompt

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.continuous import TextBatch, write
from prompt_core.mixed import answer
from prompt_core.prompts import PromptState
from prompt_core.ready import ReadyPrompt
from prompt_core.writing import Text

TEXTS = ["good", "A much longer text that says little about anything", "Where is it?", "bad and good", "Number 5"]
_BACKBONES: dict[str, Backbone] = {}


@pytest.fixture(autouse=True)
def _models(llama: Backbone, bert: Backbone) -> None:
    _BACKBONES.update(llama=llama, bert=bert)


@cache
def prompts() -> list[TunedPrompt]:
    llama, bert = _BACKBONES["llama"], _BACKBONES["bert"]
    return [
        a_prompt(llama, "a", seed=1),
        a_prompt(llama, "b", kind="deep", tokens=9, seed=2, labels=("red", "green", "light green")),
        a_prompt(llama, "c", writes=True, tokens=4, seed=3),
        a_prompt(llama, "d", writes=True, kind="deep", tokens=11, seed=4, max_new_tokens=3),
        a_prompt(llama, "e", writes=True, kind="deep", tokens=3, seed=5, max_new_tokens=5, beams=3),
        a_prompt(bert, "f", kind="deep", tokens=2, seed=5),
        a_prompt(bert, "g", kind="deep", tokens=6, seed=6, labels=("x", "y", "z")),
    ]


@cache
def ready(number: int) -> ReadyPrompt:
    prompt = prompts()[number]
    return ReadyPrompt.of(prompt, _BACKBONES["bert" if prompt.name in "fg" else "llama"])


@cache
def alone(number: int, text: str) -> tuple[str, float | None]:
    (found,) = prompts()[number].answer([text], ready(number).backbone)
    return found.text, found.score


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from(TEXTS)), max_size=30))
def test_mixed_rows_are_answered_as_each_prompt_answers_alone(layout: list[tuple[int, str]]) -> None:
    seen: list[tuple[int, int]] = []
    rows = [(ready(number), ready(number).encode(text)) for number, text in layout]
    found = answer(rows, lambda done, total: seen.append((done, total)))
    for (number, text), one in zip(layout, found, strict=True):
        expected, score = alone(number, text)
        assert one.text == expected
        assert one.score == pytest.approx(score, abs=1e-4)
    assert seen[-1:] == ([(len(layout), len(layout))] if layout else [])


@settings(deadline=None, max_examples=15)
@given(
    asked=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 7), st.integers(1, 3)), min_size=1, max_size=14),
    moments=st.lists(st.integers(0, 6), min_size=14, max_size=14),
)
def test_texts_that_enter_at_any_moment_are_written_as_alone(asked: list[tuple[int, int, int, int]], moments: list[int]) -> None:
    backbone = _BACKBONES["llama"]
    behind = _states()
    inputs = [random_ids(length, seed=number)[0].tolist() for number, (_, length, *_) in enumerate(asked)]

    def text(number: int) -> Text:
        state, _, longest, beams = asked[number]
        return Text(behind[state], inputs[number], longest, [(7,), (1000,)], beams=beams)

    alone, together = [text(number) for number in range(len(asked))], [text(number) for number in range(len(asked))]
    for one in alone:
        write(backbone, [one])
    batch, arriving, finished = TextBatch.of(backbone), sorted(zip(moments, together, strict=False), key=lambda pair: pair[0]), []
    moment = 0
    while arriving or batch.texts:
        due = deque(text for when, text in arriving if when <= moment)
        arriving = [(when, text) for when, text in arriving if when > moment]
        batch.admit(due)
        assert not due
        finished += batch.step() if batch.texts else []
        moment += 1
    assert [one.ids for one in together] == [one.ids for one in alone]
    assert [one.log_chance for one in together] == pytest.approx([one.log_chance for one in alone], abs=1e-3)
    assert len(finished) == len(set(map(id, finished))) == len(asked)


@cache
def _states() -> list[PromptState]:
    backbone = _BACKBONES["llama"]
    parts = [random_prefix(backbone, tokens, seed=tokens) for tokens in (3, 12, 5)]
    return [PromptState.of(backbone), *(PromptState.of(backbone, keys=keys, values=values) for keys, values in parts)]


def test_more_prompts_than_stay_at_hand_take_turns(llama: Backbone) -> None:
    states = [
        PromptState.of(llama, keys=keys, values=values)
        for keys, values in (random_prefix(llama, 1 + number % 5, seed=number) for number in range(40))
    ]
    texts = [[Text(state, [5, 6, 7], 3, ()) for state in states] for _ in range(2)]
    batch = TextBatch.of(llama)
    for some in (range(20), range(20, 40), range(10, 30)):  # the third find some of their prompts still there
        batch.admit(deque(texts[0][number] for number in some))
        while batch.texts:
            batch.step()
        for number in some:
            one = Text(states[number], [5, 6, 7], 3, ())
            write(llama, [one])
            assert one.ids == texts[0][number].ids[:3]
            texts[0][number] = Text(states[number], [5, 6, 7], 3, ())


def test_a_cancelled_text_leaves_at_the_next_step(llama: Backbone) -> None:
    texts = [Text(PromptState.of(llama), [5, 6], 20, ()) for _ in range(2)]
    batch = TextBatch.of(llama)
    batch.admit(deque(texts))
    batch.step()
    texts[0].cancelled = True
    assert batch.step() == [texts[0]] and batch.texts == [texts[1]]


def test_the_score_of_a_label_is_its_share_and_that_of_a_text_the_mean_chance_of_its_tokens(llama: Backbone) -> None:
    classifier, writer = ready(0), ready(2)
    (found,) = prompts()[0].answer(["good"], llama)
    assert classifier.scorer is not None and found.score is not None
    scores = classifier.scorer.scores_behind(classifier.state, [classifier.encode("good")])  # type: ignore[union-attr]
    assert found.score == pytest.approx(float(scores.softmax(-1).max()), abs=1e-4) and 0.5 <= found.score <= 1
    text = writer.text(writer.encode("good"))
    write(llama, [text])
    ids = [*writer.encode("good").input, *text.ids]
    from prompt_core.prompts import Tree, hidden_states

    (states,) = hidden_states(llama, [Tree(writer.state, [ids])])
    chances = llama.logits(states).float().log_softmax(-1)
    first = len(ids) - len(text.ids) - 1
    written = [*text.ids, *([text.end[0]] if text.ended else [])]
    expected = torch.stack([chances[first + i, token] for i, token in enumerate(written)]).mean().exp()
    assert writer.answer_of_text(text).score == pytest.approx(float(expected), rel=1e-3)
