"""Rows to look at: some at even distances, and those that say most about a change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from prompt_core.evaluation.contender import Contender
from prompt_core.evaluation.metrics import score
from prompt_core.evaluation.paired import Record
from prompt_core.evaluation.wanted import Texts

_SAMPLES = 8
_CASES = 12


class Sample(Record):
    """One test row and what each contender made of it."""

    input: dict[str, str]
    target: str
    outputs: dict[str, str]


class Case(Record):
    """A row that was chosen by its result.

    Attributes:
        before: the answer of the prompt in production, or where there is none of the first untuned contender.
        after: the tuned prompt's.
        confidence: of a classifier's mistake, in points.
        likeness: of the two texts, sentence chrF in points, where texts are compared.
    """

    input: dict[str, str]
    target: str
    before: str
    after: str
    confidence: float | None = None
    likeness: float | None = None


def samples(inputs: Sequence[Mapping[str, str]], targets: Texts, contenders: Sequence[Contender]) -> tuple[Sample, ...]:
    """Up to 8 rows at even distances, not chosen by result."""
    count = min(_SAMPLES, len(targets))
    return tuple(
        Sample(input=dict(inputs[row]), target=targets[row], outputs={c.name: c.predictions[row] for c in contenders})
        for row in (i * len(targets) // count for i in range(count))
    )


def cases(inputs: Sequence[Mapping[str, str]], targets: Texts, contenders: Sequence[Contender]) -> tuple[str, tuple[Case, ...]]:
    """Up to 12 rows: a classifier's most confident mistakes, of other prompts the outputs that changed most.

    Returns:
        The name of the contender that stands for "before", and the rows; no row where there is no other contender.
    """
    tuned = next(c for c in contenders if c.kind == "tuned")
    others = sorted((c for c in contenders if c.kind in ("production", "untuned")), key=lambda c: c.kind)
    if not others:
        return "", ()
    before = others[0]
    confidence = None if tuned.probabilities is None else 100 * tuned.probabilities.max(axis=1)
    likeness = score("chrf", tuned.predictions, before.predictions) if confidence is None else None
    if confidence is not None:
        wrong = [row for row, target in enumerate(targets) if tuned.predictions[row] != target]
        order = sorted(wrong, key=lambda row: (-confidence[row], row))
    else:
        assert likeness is not None  # the one or the other
        changed = [mine != theirs for mine, theirs in zip(tuned.predictions, before.predictions, strict=True)]
        order = [int(row) for row in np.argsort(likeness, kind="stable") if changed[row] and likeness[row] < 100]
    return before.name, tuple(
        Case(
            input=dict(inputs[row]),
            target=targets[row],
            before=before.predictions[row],
            after=tuned.predictions[row],
            confidence=None if confidence is None else round(float(confidence[row]), 2),
            likeness=None if likeness is None else round(float(likeness[row]), 2),
        )
        for row in order[:_CASES]
    )
