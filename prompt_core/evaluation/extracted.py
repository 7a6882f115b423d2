"""What was extracted against what should have been: outputs as they are judged, and the counts behind entity F1."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from prompt_core.extraction.schema import RecordForm, parse_json
from prompt_core.task import TaskSpec

Pair: TypeAlias = tuple[tuple[str, ...], str]


def as_judged(task: TaskSpec, outputs: Sequence[str]) -> list[str]:
    """Outputs in the canonical form of the targets; "" for one that is not JSON or does not fit the schema.

    How a right answer is spaced, and in which order its keys stand, costs nothing.
    """
    form = None if task.record_schema is None else RecordForm(task.record_schema)
    return [_canonical(output, form) for output in outputs]


def entity_counts(predictions: Sequence[str], targets: Sequence[str]) -> NDArray[np.float64]:
    """Per row: what is right, what was given, what should have been: float64 [N, 3].

    The things counted are pairs of a path and a value. The keys of objects are the path, down to a value that is not an object;
    an item of a list is compared whole, wherever in the list it stands. So each entity of a list counts as one, exact in its
    place and label. null counts as not there. A text that cannot be read counts as one thing that is wrong.

    Args:
        predictions, targets: as of `as_judged`.
    """
    return np.array([_counts(p, t) for p, t in zip(predictions, targets, strict=True)], dtype=np.float64)


def entity_f1_of_counts(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Micro F1, in points, of sums of counts [..., 3]; 100 where there was nothing to find and nothing was found."""
    right, given, wanted = sums[..., 0], sums[..., 1], sums[..., 2]
    return np.where(given + wanted > 0, 200 * right / np.maximum(given + wanted, 1), 100.0)


def _canonical(output: str, form: RecordForm | None) -> str:
    try:
        return form.canonical(output) if form else json.dumps(parse_json(output), ensure_ascii=False)
    except ValueError:
        return ""


def _counts(prediction: str, target: str) -> tuple[int, int, int]:
    given, wanted = _things(prediction, "output"), _things(target, "target")
    return (given & wanted).total(), given.total(), wanted.total()


def _things(text: str, side: str) -> Counter[Pair]:
    try:
        return Counter(_pairs(parse_json(text)))
    except ValueError:
        return Counter([((side,), "unreadable")])  # no JSON is written so: it equals nothing


def _pairs(value: Any, path: tuple[str, ...] = ()) -> Iterator[Pair]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _pairs(inner, (*path, key))
    elif isinstance(value, list):
        for item in value:
            if item is not None:
                yield (*path, "[]"), json.dumps(_without_null(item), sort_keys=True)
    elif value is not None:
        yield path, json.dumps(value)


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    return [_without_null(inner) for inner in value if inner is not None] if isinstance(value, list) else value
