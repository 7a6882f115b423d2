"""Folds for cross-validation: which examples are held out together, by their content and not by their order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import repeat

import polars as pl

from prompt_core.errors import PromptmillError
from prompt_core.task import TaskSpec
from prompt_core.tuning.prepared import Sides


def join_sides(sides: Sides) -> pl.DataFrame:
    """All train and validation rows, in an order of content alone."""
    train, validation = sides
    rows = train if validation is None else pl.concat([train, validation.select(train.columns)])
    return rows.sort("_id", *sorted(set(rows.columns) - {"_id"}))


def folds_of(rows: pl.DataFrame, task: TaskSpec, folds: int, shown: Collection[str] = ()) -> list[list[int]]:
    """Row numbers that each fold holds out.

    Texts are dealt out in the order of label and `_id`, the hash of their content: every fold then has as many of each
    label as the others, or one more. Rows of one text stay together.

    Args:
        rows: what `join_sides` gives.
        folds: how many.
        shown: `_id` of texts that are held out nowhere, since the start of a prompt shows them.

    Raises:
        PromptmillError: there are fewer texts than folds.
    """
    labels = rows[task.data.target] if task.objective == "classify" else repeat("")  # inputs to distil need no target column
    texts: dict[tuple[str, str], list[int]] = {}
    for number, (_id, label) in enumerate(zip(rows["_id"], labels, strict=False)):
        if _id not in shown:
            texts.setdefault((label, _id), []).append(number)
    if len(texts) < folds:
        what = f"{folds}, but there are {len(texts)} examples to hold out"
        raise PromptmillError(f"task {task.name}: tune.search.folds", what, "Add examples or lower it.")
    held_out: list[list[int]] = [[] for _ in range(folds)]
    for position, key in enumerate(sorted(texts)):
        held_out[position % folds] += texts[key]
    return [sorted(numbers) for numbers in held_out]


def not_held_out(held_out: Sequence[int], count: int) -> list[int]:
    """The row numbers below `count` that are not held out."""
    out = set(held_out)
    return [number for number in range(count) if number not in out]
