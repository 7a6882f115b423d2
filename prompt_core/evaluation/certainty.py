"""How far a classifier's probabilities can be trusted: calibration, what abstaining buys, and inputs that are out of scope."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prompt_core.evaluation.metrics import Floats
from prompt_core.evaluation.paired import Record
from prompt_core.evaluation.wanted import Texts

_BINS = 10
_COVERAGES = tuple(range(10, 101, 5))  # percent of the rows


class Bin(Record):
    """Rows whose confidence is alike: their mean confidence and their accuracy, both in points."""

    confidence: float
    accuracy: float
    rows: int


class Answered(Record):
    """What is reached when only the surest rows are answered.

    Attributes:
        coverage: share of the rows that are answered, in percent.
        accuracy: of these, in points; a row that is out of scope counts as wrong unless its own label was given.
        confidence: of the least sure of them, in points: answer from here on.
    """

    coverage: float
    accuracy: float
    confidence: float


class Certainty(Record):
    """What one contender's probabilities are worth.

    Attributes:
        ece: expected calibration error, in points.
        bins: the rows by confidence, ten bins of equal width without the empty ones.
        answered: accuracy over coverage.
        in_scope_auroc: chance, in points, that a row in scope is surer of a label in scope than one out of scope; None where
            the task names no out-of-scope label or one of the two kinds is not among the rows.
    """

    ece: float
    bins: tuple[Bin, ...]
    answered: tuple[Answered, ...]
    in_scope_auroc: float | None = None


def certainty(probabilities: Floats, labels: Sequence[str], predictions: Texts, targets: Texts, out_of_scope: str | None) -> Certainty:
    """Measure it on the test rows.

    Args:
        probabilities: float64 [N, labels], rows sum to 1.
        labels: in the order of its columns.
        out_of_scope: the label of inputs that belong to no other; it need not be among `labels`.
    """
    right = np.array([p == t for p, t in zip(predictions, targets, strict=True)])
    confidence = probabilities.max(axis=1)
    bins = reliability(confidence, right)
    in_scope = probabilities[:, [label != out_of_scope for label in labels]].max(axis=1)
    inside = np.array([target != out_of_scope for target in targets])
    return Certainty(
        ece=round(sum(each.rows * abs(each.confidence - each.accuracy) for each in bins) / len(targets), 4),
        bins=bins,
        answered=accuracy_by_coverage(in_scope if out_of_scope else confidence, right),
        in_scope_auroc=_auroc(in_scope, inside) if out_of_scope else None,
    )


def reliability(confidence: Floats, right: NDArray[np.bool_]) -> tuple[Bin, ...]:
    """Rows in ten bins of equal width by confidence (Guo et al. 2017, arXiv:1706.04599); empty bins are left out."""
    number = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    return tuple(
        Bin(
            confidence=round(100 * float(confidence[member].mean()), 4),
            accuracy=round(100 * float(right[member].mean()), 4),
            rows=int(member.sum()),
        )
        for member in (number == i for i in range(_BINS))
        if member.any()
    )


def accuracy_by_coverage(confidence: Floats, right: NDArray[np.bool_]) -> tuple[Answered, ...]:
    """Accuracy of the surest share of the rows (El-Yaniv & Wiener 2010); rows that are equally sure count by their mean."""
    order = np.argsort(-confidence, kind="stable")
    sure, hits = confidence[order], right[order].astype(np.float64)
    _, first, group = np.unique(-sure, return_index=True, return_inverse=True)
    sizes = np.diff([*first, len(sure)])
    expected = (np.add.reduceat(hits, first) / sizes)[group.ravel()]  # whatever the order among equals
    cumulative = np.cumsum(expected)
    curve = {}
    for percent in _COVERAGES:
        rows = max(1, round(percent / 100 * len(sure)))
        curve[rows] = Answered(
            coverage=round(100 * rows / len(sure), 4),
            accuracy=round(100 * float(cumulative[rows - 1]) / rows, 4),
            confidence=round(100 * float(sure[rows - 1]), 4),
        )
    return tuple(curve.values())


def _auroc(score: Floats, positive: NDArray[np.bool_]) -> float | None:
    from sklearn.metrics import roc_auc_score

    return round(100 * float(roc_auc_score(positive, score)), 4) if positive.any() and not positive.all() else None
