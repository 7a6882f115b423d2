"""Folds: by content, whatever the order of the rows; as many of each label in every one; a text never in two."""

from __future__ import annotations

import random

import polars as pl
import pytest
from helpers import a_task, examples
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_core.data.demonstrations import fair_draw
from prompt_core.errors import PromptmillError
from prompt_core.tuning.folds import folds_of, join_sides, not_held_out

sets = st.dictionaries(st.text("abcdef ", min_size=1, max_size=8).map(" ".join), st.sampled_from("xyz"), min_size=6, max_size=40)


def held_out_texts(rows: pl.DataFrame, folds: int) -> list[set[str]]:
    return [set(rows["_id"].gather(numbers)) for numbers in folds_of(rows, a_task(), folds)]


@given(sets, st.integers(2, 5), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_fold_of_a_row_does_not_depend_on_the_order(labels: dict[str, str], folds: int, order: random.Random) -> None:
    pairs = list(labels.items())
    rows = join_sides((examples(*pairs), None))
    order.shuffle(pairs)
    cut = order.randint(0, len(pairs))
    shuffled = join_sides((examples(*pairs[:cut]), examples(*pairs[cut:])))
    assert rows.equals(shuffled)
    if rows["_id"].n_unique() >= folds:
        assert held_out_texts(rows, folds) == held_out_texts(shuffled, folds)


@given(sets, st.integers(2, 5))
@settings(max_examples=100, deadline=None)
def test_every_fold_has_its_share_of_each_label_and_every_row_is_held_out_once(labels: dict[str, str], folds: int) -> None:
    rows = join_sides((examples(*labels.items()), None)).unique("_id", maintain_order=True)
    if len(rows) < folds:
        return
    found = folds_of(rows, a_task(), folds)
    assert sorted(number for fold in found for number in fold) == list(range(len(rows)))
    assert max(map(len, found)) - min(map(len, found)) <= 1
    for label in "xyz":
        counts = [sum(rows["label"][number] == label for number in fold) for fold in found]
        assert max(counts) - min(counts) <= 1
    assert all(sorted([*fold, *not_held_out(fold, len(rows))]) == list(range(len(rows))) for fold in found)


def test_a_text_with_several_targets_is_held_out_as_one() -> None:
    pairs = [(f"source {i}", f"target {j}") for i in range(4) for j in range(3)]
    rows = join_sides((examples(*pairs), None))
    for fold in folds_of(rows, a_task("smollm2", objective="generate"), 2):
        assert len(fold) == 6 and rows["_id"].gather(fold).n_unique() == 2


def test_rows_that_a_start_shows_are_held_out_nowhere() -> None:
    rows = join_sides((examples(*[(f"text {i}", "xy"[i % 2]) for i in range(10)]), None))
    assert sorted(number for fold in folds_of(rows, a_task(), 2, shown=set(fair_draw(rows, 3)["_id"])) for number in fold) == list(
        range(3, 10)
    )


def test_a_shown_text_with_several_targets_is_held_out_nowhere() -> None:
    rows = join_sides((examples(*[(f"source {i}", f"target {j}") for i in range(6) for j in range(3)]), None))
    task = a_task("smollm2", objective="generate")
    held_out = {row for fold in folds_of(rows, task, 2, shown=set(fair_draw(rows, 2)["_id"])) for row in rows["_id"].gather(fold)}
    assert held_out == set(rows["_id"]) - set(fair_draw(rows, 2)["_id"]) and len(held_out) == 4


def test_too_few_examples_are_one_line() -> None:
    with pytest.raises(PromptmillError, match=r"task t: tune.search.folds: 4, but there are 2 examples to hold out. Add examples or lower"):
        folds_of(join_sides((examples(("a", "x"), ("b", "y")), None)), a_task(), 4)
