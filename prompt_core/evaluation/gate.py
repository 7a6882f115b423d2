"""The gate: whether a tuned prompt may go live, by the rules of its task file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prompt_core.criteria import Metric
from prompt_core.evaluation.classes import Classified
from prompt_core.evaluation.paired import Comparison, holm
from prompt_core.evaluation.record import Cost, Result, RoundTrip, Verdict, shown_p
from prompt_core.task import TaskSpec

Rule = tuple[bool, str]  # whether it is met, and a sentence


def judge(
    task: TaskSpec,
    results: Mapping[str, Result],
    comparisons: Mapping[str, Mapping[Metric, Comparison]],
    sayable: float | None,
    classes: Classified | None = None,
    cost: Cost | None = None,
    ms_per_row: float | None = None,
    round_trips: Sequence[RoundTrip] = (),
    rules: Sequence[Rule] = (),
) -> Verdict:
    """Each requirement as a sentence; passed when there was an untuned contender to beat and all are met.

    On the gate's metric: against every untuned contender a gain of at least `gate.min_gain` points that a paired test shows at
    `gate.alpha`; against every rival and the prompt in production, no loss that it shows at that level. Then the caps: no class
    that loses too much, length, time per row; and every stack where the prompt must run gives our answers.

    Args:
        results, comparisons: by contender.
        sayable: the smallest gain in accuracy that the test rows show, as `smallest_gain` has it, if it is known.
        ms_per_row: milliseconds that the tuned prompt took for a test row.
        rules: what was found out besides.
    """
    required: list[Rule] = list(rules)
    for name, by_metric in comparisons.items():
        if results[name].kind == "teacher":
            continue
        rule = _beats if results[name].kind == "untuned" else _is_not_worse
        required.append(rule(task, name, by_metric[task.gate_metric]))
    if not any(result.kind == "untuned" for result in results.values()):
        required.append((False, "no untuned contender was measured, so that no gain can be shown"))
    shown = [sentence for _, sentence in required]
    if not all(met for met, _ in required) and sayable is not None:
        shown.append(f"for scale: where one row in a hundred gets worse, so many test rows show a gain of {sayable:.1f} points or more")
    caps = [*_classes_hold(task, classes), *_within_caps(task, cost, ms_per_row), *map(_runs_there, round_trips)]
    passed = all(met for met, _ in (*required, *caps))
    return Verdict(passed=passed, reasons=(*shown, *(sentence for _, sentence in caps)))


def _beats(task: TaskSpec, name: str, found: Comparison) -> Rule:
    gate = task.gate
    numbers = f"{_numbers(task.gate_metric, found)}, p {shown_p(found.p_better)}"
    if found.gain < gate.min_gain:
        return False, f"gain over {name} is too small: {numbers}; needs {gate.min_gain:g} points or more"
    if found.p_better >= gate.alpha:
        return False, f"gain over {name} is not shown: {numbers} in the {found.test}; needs p below {gate.alpha:g}"
    return True, f"better than {name}: {numbers} in the {found.test}; needed {gate.min_gain:g} points or more and p below {gate.alpha:g}"


def _is_not_worse(task: TaskSpec, name: str, found: Comparison) -> Rule:
    numbers = f"{_numbers(task.gate_metric, found)}, p of a loss {shown_p(found.p_worse)} in the {found.test}"
    if found.p_worse < task.gate.alpha:
        return False, f"worse than {name}: {numbers}; needs {task.gate.alpha:g} or more"
    return True, f"not shown to be worse than {name}: {numbers}; needed {task.gate.alpha:g} or more"


def _classes_hold(task: TaskSpec, found: Classified | None) -> list[Rule]:
    """No class loses more recall than allowed, where McNemar's test on its rows, corrected for the number of classes, shows a loss."""
    most = task.gate.max_class_loss
    compared = [each for each in found.classes if each.recall_before is not None] if found else []
    if most is None or not compared:
        return []
    adjusted = holm([each.p_worse or 0.0 for each in compared])
    broken = [
        f'class "{each.label}" loses {each.recall_before - each.recall:.1f} points of recall against production '
        f"({each.rows} rows, p {shown_p(p)} after Holm's correction); at most {most:g} are allowed"
        for each, p in zip(compared, adjusted, strict=True)
        if each.recall_before is not None and each.recall_before - each.recall > most and p < task.gate.alpha
    ]
    kept = f"none of {len(compared)} classes is shown to lose more than {most:g} points of recall against production"
    return [(False, sentence) for sentence in broken] or [(True, kept)]


def _within_caps(task: TaskSpec, cost: Cost | None, ms_per_row: float | None) -> list[Rule]:
    rules: list[Rule] = []
    if (most := task.gate.max_tokens) is not None:
        tokens = cost.prompt_tokens if cost else None
        rules.append((tokens is not None and tokens <= most, f"the prompt is {tokens} tokens long; at most {most} are allowed"))
    if (slowest := task.gate.max_ms_per_row) is not None:
        measured = "the time for a test row was not measured" if ms_per_row is None else f"a test row took {ms_per_row:.1f} ms"
        said = f"{measured} on the machine of the evaluation; at most {slowest:g} ms are allowed"
        rules.append((ms_per_row is not None and ms_per_row <= slowest, said))
    return rules


def _runs_there(trip: RoundTrip) -> Rule:
    return trip.passed, f"{'runs' if trip.passed else 'does not run'} in {trip.stack} as {trip.format}: {trip.detail}"


def _numbers(metric: Metric, found: Comparison) -> str:
    return f"{metric} {found.gain:+.1f} points [{found.low:+.1f}, {found.high:+.1f}]"
