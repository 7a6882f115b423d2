"""A classifier label by label: what was taken for what, and how each class fared against the prompt in production."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from prompt_core.evaluation.certainty import Certainty, certainty
from prompt_core.evaluation.contender import Contender
from prompt_core.evaluation.paired import Record, mcnemar
from prompt_core.evaluation.wanted import Texts


class ClassResult(Record):
    """One label.

    Attributes:
        rows: test rows that have it.
        precision, recall, f1: of the tuned prompt, in points; 0 where there is nothing to divide by.
        recall_before: of the prompt in production, where there is one that knows the label.
        p_worse: one-sided p value of "recall is lower than in production", by the exact McNemar test on the label's rows.
    """

    label: str
    rows: int
    precision: float
    recall: float
    f1: float
    recall_before: float | None = None
    p_worse: float | None = None


class Classified(Record):
    """A classifier's answers.

    Attributes:
        labels: of the targets and the predictions, sorted.
        confusion: (number of the true label, number of the predicted one, rows) where there are rows.
        classes: every label that a test row has.
        certainty: of each contender that gives probabilities, by name.
    """

    labels: tuple[str, ...]
    confusion: tuple[tuple[int, int, int], ...]
    classes: tuple[ClassResult, ...]
    certainty: dict[str, Certainty]

    @property
    def pairs(self) -> tuple[list[str], list[str]]:
        """Targets and predictions, one each per test row, in an order of their own."""
        rows = [(self.labels[true], self.labels[given]) for true, given, count in self.confusion for _ in range(count)]
        return [true for true, _ in rows], [given for _, given in rows]

    @property
    def predicted(self) -> dict[str, int]:
        """Test rows by the label that they were given."""
        return dict(Counter(self.pairs[1]))

    @property
    def worst(self) -> list[ClassResult]:
        """The labels by F1, the worst first."""
        return sorted(self.classes, key=lambda found: (found.f1, found.label))


def classified(contenders: Sequence[Contender], targets: Texts, out_of_scope: str | None) -> Classified:
    """What the predictions of all contenders say, label by label; the confusion is the tuned prompt's."""
    tuned = next(c for c in contenders if c.kind == "tuned")
    before = next((c for c in contenders if c.kind == "production"), None)
    labels = sorted({*targets, *tuned.predictions})
    number = {label: i for i, label in enumerate(labels)}
    counts = Counter(zip(targets, tuned.predictions, strict=True))
    return Classified(
        labels=tuple(labels),
        confusion=tuple((number[true], number[given], count) for (true, given), count in sorted(counts.items())),
        classes=tuple(_class_result(label, targets, tuned, before) for label in sorted(set(targets))),
        certainty={
            c.name: certainty(c.probabilities, c.labels, c.predictions, targets, out_of_scope)
            for c in contenders
            if c.probabilities is not None
        },
    )


def _class_result(label: str, targets: Texts, tuned: Contender, before: Contender | None) -> ClassResult:
    true = np.array([target == label for target in targets])
    given = np.array([prediction == label for prediction in tuned.predictions])
    hits, rows = int((true & given).sum()), int(true.sum())
    precision, recall = hits / max(int(given.sum()), 1), hits / rows
    knows = before is not None and (label in before.labels or not before.labels)
    then = np.array([prediction == label for prediction in before.predictions])[true] if before is not None and knows else None
    return ClassResult(
        label=label,
        rows=rows,
        precision=round(100 * precision, 4),
        recall=round(100 * recall, 4),
        f1=round(200 * hits / (rows + int(given.sum())), 4),
        recall_before=None if then is None else round(100 * float(then.mean()), 4),
        p_worse=None if then is None else round(mcnemar(given[true], then)[1], 6),
    )
