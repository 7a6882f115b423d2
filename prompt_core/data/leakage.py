"""Leakage: texts, or near-duplicates of them, that stand on two sides of a split."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from prompt_core.data.similar import SimilarTexts, example_texts
from prompt_core.task import TaskSpec
from prompt_core.template import Template

if TYPE_CHECKING:
    from prompt_core.data.split import Splits

_EXAMPLES = 5


@dataclass(frozen=True)
class Leakage:
    """Rows whose text stands on a held-out side too: equal (`exact`) or close (`near`). False when there are none."""

    exact: int = 0
    near: int = 0
    examples: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.exact or self.near)

    def __add__(self, other: Leakage) -> Leakage:
        return Leakage(self.exact + other.exact, self.near + other.near, (self.examples + other.examples)[:_EXAMPLES])

    def as_dict(self) -> dict[str, Any]:
        """The counts and examples as JSON types."""
        return {**dataclasses.asdict(self), "examples": list(self.examples)}


def remove_leakage(train: pl.DataFrame, test: pl.DataFrame, fields: tuple[str, ...], threshold: float) -> tuple[pl.DataFrame, Leakage]:
    """`train` without the texts that `test` holds too; `test` is never touched.

    Args:
        train, test: frames with `_id` and the template's fields.
        threshold: Jaccard share of word 3-grams from which two texts count as one; 1 compares the `_id` alone.

    Returns:
        The rest of `train` in its order, and what was taken out.
    """
    known = set(test["_id"])
    index = None if threshold == 1 or train.is_empty() else SimilarTexts(threshold)
    held_out = example_texts(test, fields)
    if index is not None:
        for text in held_out:
            index.add(index.sketch(text))
    keep: list[bool] = []
    exact, examples = 0, list[str]()
    for _id, text in zip(train["_id"], example_texts(train, fields), strict=True):
        twin = None if index is None or _id in known else index.match(index.sketch(text))
        exact += _id in known
        keep.append(_id not in known and twin is None)
        if not keep[-1] and len(examples) < _EXAMPLES:
            examples.append(f"{text[:120]!r}" + ("" if twin is None else f" is like {held_out[twin][:120]!r}"))
    rest = train.filter(pl.Series(keep, dtype=pl.Boolean))
    return rest, Leakage(exact, len(train) - len(rest) - exact, tuple(examples))


def find_leakage(splits: Splits, task: TaskSpec) -> Leakage:
    """What leaks between any two sides; empty for everything that `prepare` returns."""
    fields, threshold = Template(task).fields, task.data.near_duplicate
    seen = pl.concat([splits.train, splits.validation])
    _, into_test = remove_leakage(seen, splits.test, fields, threshold)
    _, into_validation = remove_leakage(splits.train, splits.validation, fields, threshold)
    return into_test + into_validation
