"""Copies, edits, the journal and the budget."""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from prompt_core.text.budget import Budget, Clock
from prompt_core.text.copying import Copies
from prompt_core.text.demonstrations import exemplars
from prompt_core.text.edits import edited, phrases, sentence
from prompt_core.text.journal import Journal
from prompt_core.text.spec import Choice

_WORDS = st.lists(st.text("abcdefg", min_size=1, max_size=4), min_size=1, max_size=12)


def test_eight_words_in_a_row_are_a_copy_and_seven_are_not() -> None:
    copies = Copies(["The parcel was left behind the blue shed near the gate."])
    assert copies.in_wording("Say that the parcel was left behind the blue shed") == "the parcel was left behind the blue shed"
    assert copies.in_wording("Say that parcel was left behind the blue shed") is None


@given(_WORDS, st.integers(0, 2**32))
def test_an_edit_of_words_holds_no_others(words: list[str], seed: int) -> None:
    wording = " ".join(words)
    made = edited([wording, "Answer in one word, and be brief."], Random(seed))
    known = {word.lower().strip(",;:") for word in (wording + " Answer in one word, and be brief.").split()}
    assert {word.lower().strip(",;:") for word in made.split()} <= known


def test_phrases_come_apart_and_together_again() -> None:
    parts = phrases("Read the text, find the mood and answer with one word.")
    assert parts == ["Read the text,", "find the mood", "and answer", "with one word."]
    assert sentence(parts) == "Read the text, find the mood and answer with one word."


def test_a_line_that_a_crash_cut_short_is_left_out_and_the_rest_stays(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "journal"
    Journal(path, Clock()).put({"a": [1.5, 2.0], "b": "text"})
    with path.open("ab") as file:
        file.write(b'["c", [1.')
    journal = Journal(path, Clock())
    assert journal.get("a") == [1.5, 2.0] and journal.get("b") == "text" and journal.get("c") is None
    journal.put({"d": 1})
    assert Journal(path, Clock()).get("d") == 1 and Journal(path, Clock()).get("b") == "text"


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=20),
    st.integers(0, 6),
    st.sampled_from(["random", "diverse", "typical"]),
    st.integers(),
)
def test_every_label_has_as_many_exemplars_as_asked_for_or_all_of_its_rows(labels: list[str], each: int, choice: Choice, seed: int) -> None:
    features = F.normalize(torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(seed % 2**32)), dim=-1)
    ids = [f"{number}{label}" for number, label in enumerate(labels)]
    taken = exemplars(ids, labels, features, each, choice, Random(seed))
    assert len(set(taken)) == len(taken) and set(taken) <= set(ids)
    assert all(sum(row.endswith(label) for row in taken) == min(each, labels.count(label)) for label in "abc")
    assert exemplars(ids, labels, features, each, choice, Random(seed)) == taken
    if each >= len(labels):  # whichever way they are chosen, all of them are one choice
        assert taken == exemplars(ids, labels, features, each, "random", Random(0))


def test_a_budget_names_the_limit_that_would_be_passed() -> None:
    budget = Budget(tokens=100, dollars=1.0, spent_tokens=90)
    assert budget.admits(tokens=10) and budget.reason(tokens=11) == "100 tokens" and budget.reason(dollars=1.5) == "1.0 dollars"
    assert Budget(seconds=0.0).reason() == "0 seconds"


def test_a_search_that_goes_on_is_as_far_as_the_answers_that_it_is_given_again(tmp_path: Path) -> None:
    path, first = tmp_path / "journal", Clock()
    first.at_least(100.0)
    Journal(path, first).put({"early": 1})
    first.at_least(500.0)
    Journal(path, first).put({"late": 2})

    budget = Budget(seconds=400.0)
    journal = Journal(path, budget.clock)
    assert budget.admits()  # what was found in time is found again, whenever the search was interrupted
    journal.get("early")
    assert 100 <= budget.clock.seconds < 400 and budget.admits()
    journal.get("late")
    assert budget.reason() == "400 seconds"
