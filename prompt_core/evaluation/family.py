"""Many tasks in one run: the more are tested, the likelier one passes by chance. Holm's correction keeps that chance at alpha."""

from __future__ import annotations

from collections.abc import Sequence

from prompt_core.evaluation.paired import holm
from prompt_core.evaluation.record import Evaluation, Verdict, shown_p


def gate_p_value(evaluation: Evaluation) -> float:
    """The p value of "better than every untuned contender" on the gate's metric: the largest of them; 1 where there is none."""
    untuned = [result.name for result in evaluation.contenders if result.kind == "untuned"]
    return max((evaluation.comparisons[name][evaluation.gate_metric].p_better for name in untuned), default=1.0)


def corrected(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """The evaluations of one run, in order, each with the verdict that holds among all of them.

    A prompt that passed by itself fails where its p value, corrected for the number of tasks, is not below its gate's alpha.
    One evaluation alone stays as it is.
    """
    if len(evaluations) < 2:
        return list(evaluations)
    adjusted = holm([gate_p_value(evaluation) for evaluation in evaluations])
    return [_judged_again(each, p, len(evaluations)) for each, p in zip(evaluations, adjusted, strict=True)]


def _judged_again(evaluation: Evaluation, p: float, tasks: int) -> Evaluation:
    met, verdict = p < evaluation.alpha, evaluation.verdict
    among = f"among the {tasks} tasks of this run: p {shown_p(p)} after Holm's correction; needs below {evaluation.alpha:g}"
    reason = among if met else f"not shown {among}"
    judged = Verdict(passed=verdict.passed and met, reasons=(*verdict.reasons, reason))
    return evaluation.model_copy(update={"verdict": judged})
