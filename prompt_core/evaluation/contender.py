"""`Contender`: one way to do a task, with what it answered on the test rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from prompt_core.criteria import Metric
from prompt_core.evaluation.metrics import Floats

Kind: TypeAlias = Literal["untuned", "rival", "production", "tuned", "teacher"]


@dataclass(frozen=True)
class Contender:
    """One way to do the task.

    Attributes:
        name: such as `zero_shot`, `linear_probe` or `tuned`.
        kind: `untuned` must be beaten; `rival` and `production` must not be better; `teacher` is shown, no more; `tuned`
            is what is judged.
        predictions: one output per test row, in order.
        scores: points per test row, float64 [N], of metrics that do not follow from the outputs.
        probabilities: of a classifier, float64 [N, labels], in the order of `labels`.
        labels: what it chooses from, where it says how sure it is.
        seconds: that its answers took on this machine, where they were measured.
    """

    name: str
    kind: Kind
    predictions: Sequence[str]
    scores: Mapping[Metric, Floats] = field(default_factory=dict)
    probabilities: Floats | None = None
    labels: Sequence[str] = ()
    seconds: float | None = None
