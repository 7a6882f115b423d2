"""Results by the values of a column: a mean over all rows can hide that some kind of them is served badly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from prompt_core.evaluation.metrics import Pooled
from prompt_core.evaluation.paired import Measured, Record, interval

_MOST_VALUES = 12
_OTHERS, _EMPTY = "(others)", "(empty)"


class Slice(Record):
    """The test rows with one value in a column.

    Attributes:
        rows: how many.
        values: of each contender on the gate's metric, by name.
    """

    column: str
    value: str
    rows: int
    values: dict[str, Measured]


def slices(columns: Mapping[str, Sequence[str]], measured: Mapping[str, Pooled]) -> tuple[Slice, ...]:
    """Every column by its values, the most frequent first.

    Numbers with more than 12 values are cut into quarters, beside the rows without one; of other values the 12 most frequent are shown,
    the rest as one.

    Args:
        columns: the value of each test row, by column.
        measured: the gate's metric of each contender on the same rows.
    """
    found = []
    for column, values in columns.items():
        groups = np.array(_grouped(values))
        counts = Counter(groups.tolist())
        for value in sorted(counts, key=lambda v: (v == _OTHERS, -counts[v], v)):
            rows = groups == value
            parts = {name: Pooled(whole.metric, whole.rows[rows], whole.value) for name, whole in measured.items()}
            results = {name: Measured.of(part, interval(part)) for name, part in parts.items()}
            found.append(Slice(column=column, value=value, rows=int(rows.sum()), values=results))
    return tuple(found)


def _grouped(values: Sequence[str]) -> list[str]:
    shown = [value or _EMPTY for value in values]
    if len(set(shown)) <= _MOST_VALUES:
        return shown
    numbers = np.array([_number(value) for value in values if value])
    if not np.isfinite(numbers).all():
        kept = {value for value, _ in sorted(Counter(shown).items(), key=lambda pair: (-pair[1], pair[0]))[:_MOST_VALUES]}
        return [value if value in kept else _OTHERS for value in shown]
    edges = np.unique(np.quantile(numbers, [0.25, 0.5, 0.75]))
    names = [f"up to {edges[0]:.10g}", *(f"{low:.10g} to {high:.10g}" for low, high in pairwise(edges)), f"over {edges[-1]:.10g}"]
    return [names[np.searchsorted(edges, float(value))] if value else _EMPTY for value in values]


def _number(text: str) -> float:
    """A number, NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return np.nan
