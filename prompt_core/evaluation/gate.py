"""The evaluation of one task: every contender measured on the same test rows, and the verdict whether the tuned prompt may go live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from prompt_core.errors import PromptmillError
from prompt_core.evaluation.extracted import as_judged
from prompt_core.evaluation.metrics import Floats, Pooled, Texts, from_scores, pooled
from prompt_core.evaluation.paired import Comparison, Record, compare_pooled, interval, smallest_gain
from prompt_core.task import Metric, TaskSpec

Kind: TypeAlias = Literal["untuned", "rival", "production", "tuned", "teacher"]

_SAMPLES = 8


@dataclass(frozen=True)
class Contender:
    """One way to do the task.

    Attributes:
        name: such as `zero_shot`, `linear_probe` or `tuned`.
        kind: `untuned` must be beaten; `rival` and `production` must not be better; `teacher` is shown, no more; `tuned`
            is what is judged.
        predictions: one output per test row, in order.
        scores: points per test row, float64 [N], of metrics that do not follow from the outputs.
    """

    name: str
    kind: Kind
    predictions: Sequence[str]
    scores: Mapping[Metric, Floats] = field(default_factory=dict)


class Measured(Record):
    """A metric's reported value and its 95 % interval, in points."""

    value: float
    low: float
    high: float


class Result(Record):
    """What one contender reached."""

    name: str
    kind: Kind
    metrics: dict[Metric, Measured]


class Verdict(Record):
    """Whether the prompt may go live, and a sentence with numbers for each thing that was required."""

    passed: bool
    reasons: tuple[str, ...]


class Sample(Record):
    """One test row and what each contender made of it."""

    input: dict[str, str]
    target: str
    outputs: dict[str, str]


class Distilled(Record):
    """What distillation saved, and what it cost.

    Attributes:
        tokens_before, tokens_after: in front of every input.
        cache_bytes_before, cache_bytes_after: of their keys and values in the model's dtype.
        divergence: of each contender from the teacher, mean nats per token of its answers.
    """

    tokens_before: int
    tokens_after: int
    cache_bytes_before: int
    cache_bytes_after: int
    divergence: dict[str, float]


class Evaluation(Record):
    """All that was measured on the test rows of a task. Depends on its inputs alone.

    Attributes:
        task: the task's name.
        prompt_digest: of the tuned prompt.
        rows: number of test rows.
        gate_metric, min_gain, alpha: the rule of the gate; the gain in points.
        smallest_gain: the smallest gain in accuracy, in points, that so many rows can show, see `paired.smallest_gain`;
            None where there is none or the gate's metric is another.
        contenders: results, in the order given.
        comparisons: the tuned prompt against each other contender, by name and metric.
        samples: up to 8 test rows at even distances, not chosen by result.
        distilled: of a distilled prompt.
    """

    task: str
    prompt_digest: str
    rows: int
    gate_metric: Metric
    min_gain: float
    alpha: float
    smallest_gain: float | None
    contenders: tuple[Result, ...]
    comparisons: dict[str, dict[Metric, Comparison]]
    verdict: Verdict
    samples: tuple[Sample, ...]
    distilled: Distilled | None = None

    @property
    def tuned(self) -> Result:
        """The contender that is judged."""
        return next(result for result in self.contenders if result.kind == "tuned")

    def table(self) -> str:
        """Plain aligned text for terminals: values with 95 % intervals, the tuned prompt's gains with p values, the verdict."""
        values, gains = self._cells()
        widths = [max(map(len, column)) for column in zip(*values, *gains, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (*values, *gains)]
        lines.insert(len(values), "")
        return "\n".join(
            [self._title(), "", *lines, "", *self._savings(), self._outcome(), *(f"  - {reason}" for reason in self.verdict.reasons)]
        )

    def markdown(self) -> str:
        """The same as `table`, in Markdown."""
        values, gains = self._cells()
        outcome = [f"**{self._outcome()}**", "", *(f"- {reason}" for reason in self.verdict.reasons)]
        return "\n".join([self._title(), "", *_markdown_table(values), "", *_markdown_table(gains), "", *self._savings(), *outcome])

    def _savings(self) -> list[str]:
        if (found := self.distilled) is None:
            return []
        nats = ", ".join(f"{name} {value:.3f}" for name, value in found.divergence.items())
        tokens = f"{found.tokens_before} tokens became {found.tokens_after}"
        memory = f"{found.cache_bytes_before / 2**20:.1f} MiB of keys and values {found.cache_bytes_after / 2**20:.1f}"
        return [f"{tokens}, {memory}; divergence from the teacher in nats per token: {nats}", ""]

    def _cells(self) -> tuple[list[list[str]], list[list[str]]]:
        """Two grids with the same columns, each with its header: values by contender, and gains over each other one."""
        metrics = list(self.tuned.metrics)
        values = [[r.name, *(f"{m.value:.1f} [{m.low:.1f}, {m.high:.1f}]" for m in r.metrics.values())] for r in self.contenders]
        gains = [[name, *(_gain_cell(comparison) for comparison in by_metric.values())] for name, by_metric in self.comparisons.items()]
        return [["value [95 %]", *metrics], *values], [[f"{self.tuned.name} against", *metrics], *gains]

    def _title(self) -> str:
        return f"{self.task}: {self.rows} test rows, prompt {self.prompt_digest[:12]}"

    def _outcome(self) -> str:
        return f"gate {'passed' if self.verdict.passed else 'failed'}"


def evaluate_contenders(
    task: TaskSpec,
    inputs: Sequence[Mapping[str, str]],
    targets: Texts,
    facts: Texts | None,
    contenders: Sequence[Contender],
    prompt_digest: str,
    distilled: Distilled | None = None,
) -> Evaluation:
    """Measure every contender on the test rows and judge the tuned one.

    The gate, on the task's gate metric: against every untuned contender a gain of at least `gate.min_gain` points that a
    paired test shows at `gate.alpha`; against every rival and the prompt in production, no loss that it shows at that level.

    Args:
        inputs: the fields of each row, for the samples.
        targets: the right label or text of each row.
        facts: `key: value` lines of each row, where a metric needs them.
        contenders: exactly one is tuned; names differ.
        distilled: of a distilled prompt; passed on.

    Raises:
        PromptmillError: there are no test rows.
        ValueError: not exactly one contender is tuned, two have one name, or lengths differ.
    """
    if not targets:
        raise PromptmillError(f"task {task.name}: data.test", "there are no test rows to evaluate on", "Add examples or raise data.test.")
    tuned = _the_tuned(contenders, inputs, targets)
    judged = {c.name: as_judged(task, c.predictions) if task.objective == "extract" else c.predictions for c in contenders}
    measured = {c.name: {metric: _measured(c, judged[c.name], metric, targets, facts) for metric in task.metrics} for c in contenders}
    results = {c.name: Result(name=c.name, kind=c.kind, metrics=_values(measured[c.name])) for c in contenders}
    comparisons = {
        c.name: {metric: compare_pooled(measured[tuned.name][metric], theirs) for metric, theirs in measured[c.name].items()}
        for c in contenders
        if c is not tuned
    }
    sayable = smallest_gain(len(targets), task.gate.alpha) if task.gate_metric == "accuracy" else None
    return Evaluation(
        task=task.name,
        prompt_digest=prompt_digest,
        rows=len(targets),
        gate_metric=task.gate_metric,
        min_gain=task.gate.min_gain,
        alpha=task.gate.alpha,
        smallest_gain=sayable,
        contenders=tuple(results.values()),
        comparisons=comparisons,
        verdict=_judge(task, results, comparisons, sayable),
        samples=_samples(inputs, targets, contenders),
        distilled=distilled,
    )


def _measured(contender: Contender, outputs: Texts, metric: Metric, targets: Texts, facts: Texts | None) -> Pooled:
    if metric in contender.scores:
        return from_scores(metric, contender.scores[metric])
    return pooled(metric, outputs, targets, facts)


def _the_tuned(contenders: Sequence[Contender], inputs: Sequence[Mapping[str, str]], targets: Texts) -> Contender:
    names = [contender.name for contender in contenders]
    tuned = [contender for contender in contenders if contender.kind == "tuned"]
    if len(tuned) != 1 or len(set(names)) != len(names):
        raise ValueError(f"needs different names and exactly one tuned contender, found {[(c.name, c.kind) for c in contenders]}")
    for name, length in [("inputs", len(inputs)), *((c.name, len(c.predictions)) for c in contenders)]:
        if length != len(targets):
            raise ValueError(f"{name} has {length} rows, there are {len(targets)} targets")
    return tuned[0]


def _values(measured: Mapping[Metric, Pooled]) -> dict[Metric, Measured]:
    around = {metric: interval(found) for metric, found in measured.items()}
    return {m: Measured(value=round(found.reported, 6), low=around[m].low, high=around[m].high) for m, found in measured.items()}


def _judge(
    task: TaskSpec, results: Mapping[str, Result], comparisons: Mapping[str, Mapping[Metric, Comparison]], sayable: float | None
) -> Verdict:
    """Each requirement as (met, sentence); passed when there was an untuned contender to beat and all are met."""
    required: list[tuple[bool, str]] = []
    for name, by_metric in comparisons.items():
        if results[name].kind == "teacher":
            continue
        rule = _beats if results[name].kind == "untuned" else _is_not_worse
        required.append(rule(task, name, by_metric[task.gate_metric]))
    if not any(result.kind == "untuned" for result in results.values()):
        required.append((False, "no untuned contender was measured, so that no gain can be shown"))
    passed = all(met for met, _ in required)
    reasons = [sentence for _, sentence in required]
    if not passed and sayable is not None:
        reasons.append(f"for scale: so many test rows can show a gain in accuracy of about {sayable:.1f} points, no smaller one")
    return Verdict(passed=passed, reasons=tuple(reasons))


def _beats(task: TaskSpec, name: str, found: Comparison) -> tuple[bool, str]:
    gate = task.gate
    numbers = f"{_numbers(task.gate_metric, found)}, p {_p(found.p_better)}"
    if found.gain < gate.min_gain:
        return False, f"gain over {name} is too small: {numbers}; needs {gate.min_gain:g} points or more"
    if found.p_better >= gate.alpha:
        return False, f"gain over {name} is not shown: {numbers} in the {found.test}; needs p below {gate.alpha:g}"
    return True, f"better than {name}: {numbers} in the {found.test}; needed {gate.min_gain:g} points or more and p below {gate.alpha:g}"


def _is_not_worse(task: TaskSpec, name: str, found: Comparison) -> tuple[bool, str]:
    numbers = f"{_numbers(task.gate_metric, found)}, p of a loss {_p(found.p_worse)} in the {found.test}"
    if found.p_worse < task.gate.alpha:
        return False, f"worse than {name}: {numbers}; needs {task.gate.alpha:g} or more"
    return True, f"not shown to be worse than {name}: {numbers}; needed {task.gate.alpha:g} or more"


def _numbers(metric: Metric, found: Comparison) -> str:
    return f"{metric} {found.gain:+.1f} points [{found.low:+.1f}, {found.high:+.1f}]"


def _p(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def _gain_cell(found: Comparison) -> str:
    return f"{found.gain:+.1f} [{found.low:.1f}, {found.high:.1f}] p {_p(found.p_better)}"


def _markdown_table(grid: Sequence[Sequence[str]]) -> list[str]:
    rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in grid]
    return [rows[0], "|" + " --- |" * len(grid[0]), *rows[1:]]


def _samples(inputs: Sequence[Mapping[str, str]], targets: Texts, contenders: Sequence[Contender]) -> tuple[Sample, ...]:
    count = min(_SAMPLES, len(targets))
    return tuple(
        Sample(input=dict(inputs[row]), target=targets[row], outputs={c.name: c.predictions[row] for c in contenders})
        for row in (i * len(targets) // count for i in range(count))
    )
