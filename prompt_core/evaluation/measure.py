"""Every contender measured on the same test rows, and judged: from outputs to an `Evaluation`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from prompt_core.criteria import Metric
from prompt_core.errors import PromptmillError
from prompt_core.evaluation.cases import cases, samples
from prompt_core.evaluation.classes import classified
from prompt_core.evaluation.contender import Contender
from prompt_core.evaluation.extracted import as_judged
from prompt_core.evaluation.gate import Rule, judge
from prompt_core.evaluation.metrics import Pooled, from_scores, pooled
from prompt_core.evaluation.paired import Measured, compare_pooled, interval
from prompt_core.evaluation.power import power_sentence, smallest_gain
from prompt_core.evaluation.record import Cost, Distilled, Evaluation, Leaked, Result, RoundTrip
from prompt_core.evaluation.slices import slices
from prompt_core.evaluation.wanted import Texts, Wanted
from prompt_core.task import TaskSpec


@dataclass(frozen=True)
class Rows:
    """The test rows.

    Attributes:
        inputs: the template's fields of each row.
        targets: the right label or text of each row.
        wanted: what else is known of the right outputs.
        columns: the columns by which results are shown apart, one value per row.
    """

    inputs: Sequence[Mapping[str, str]]
    targets: Texts
    wanted: Wanted = field(default_factory=Wanted)
    columns: Mapping[str, Texts] = field(default_factory=dict)


@dataclass(frozen=True)
class About:
    """What is known of the tuned prompt besides its answers.

    Attributes:
        production_digest: of what else is in production, if anything is.
        rules: what else the gate requires, see `judge`.
    """

    digest: str
    production_digest: str | None = None
    rules: tuple[Rule, ...] = ()
    distilled: Distilled | None = None
    leaked: Leaked | None = None
    cost: Cost | None = None
    round_trips: tuple[RoundTrip, ...] = ()

    def with_rule(self, rule: Rule) -> About:
        """The same, and one thing more."""
        return replace(self, rules=(*self.rules, rule))


def evaluate_contenders(task: TaskSpec, rows: Rows, contenders: Sequence[Contender], about: About) -> Evaluation:
    """Measure every contender on the test rows and judge the tuned one, see `gate.judge`.

    Args:
        contenders: exactly one is tuned; names differ.

    Raises:
        PromptmillError: there are no test rows.
        ValueError: not exactly one contender is tuned, two have one name, or lengths differ.
    """
    if not rows.targets:
        raise PromptmillError(f"task {task.name}: data.test", "there are no test rows to evaluate on", "Add examples or raise data.test.")
    tuned = _the_tuned(contenders, rows)
    judged = {c.name: as_judged(task, c.predictions) if task.objective == "extract" else c.predictions for c in contenders}
    measured = {c.name: {metric: _measured(c, judged[c.name], metric, rows) for metric in task.metrics} for c in contenders}
    results = {c.name: Result(name=c.name, kind=c.kind, metrics=_values(measured[c.name])) for c in contenders}
    comparisons = {
        c.name: {metric: compare_pooled(measured[tuned.name][metric], theirs) for metric, theirs in measured[c.name].items()}
        for c in contenders
        if c is not tuned
    }
    sayable = smallest_gain(len(rows.targets), task.gate.alpha) if task.gate_metric == "accuracy" else None
    by_class = classified(contenders, rows.targets, task.evaluate.out_of_scope) if task.objective == "classify" else None
    ms_per_row = None if tuned.seconds is None else 1000 * tuned.seconds / len(rows.targets)
    before, telling = cases(rows.inputs, rows.targets, contenders)
    return Evaluation(
        task=task.name,
        prompt_digest=about.digest,
        production_digest=about.production_digest,
        rows=len(rows.targets),
        gate_metric=task.gate_metric,
        min_gain=task.gate.min_gain,
        alpha=task.gate.alpha,
        smallest_gain=sayable,
        contenders=tuple(results.values()),
        comparisons=comparisons,
        verdict=judge(task, results, comparisons, sayable, by_class, about.cost, ms_per_row, about.round_trips, about.rules),
        samples=samples(rows.inputs, rows.targets, contenders),
        distilled=about.distilled,
        power=power_sentence(task, len(rows.targets)),
        classified=by_class,
        slices=slices(rows.columns, {name: by_metric[task.gate_metric] for name, by_metric in measured.items()}),
        before=before,
        cases=telling,
        leaked=about.leaked,
        cost=about.cost,
        round_trips=about.round_trips,
        seconds={c.name: round(c.seconds, 3) for c in contenders if c.seconds is not None},
    )


def _measured(contender: Contender, outputs: Texts, metric: Metric, rows: Rows) -> Pooled:
    if metric in contender.scores:
        return from_scores(metric, contender.scores[metric])
    return pooled(metric, outputs, rows.targets, rows.wanted)


def _the_tuned(contenders: Sequence[Contender], rows: Rows) -> Contender:
    names = [contender.name for contender in contenders]
    tuned = [contender for contender in contenders if contender.kind == "tuned"]
    if len(tuned) != 1 or len(set(names)) != len(names):
        raise ValueError(f"needs different names and exactly one tuned contender, found {[(c.name, c.kind) for c in contenders]}")
    columns = [(f"column {name}", len(values)) for name, values in rows.columns.items()]
    for name, length in [("inputs", len(rows.inputs)), *columns, *((c.name, len(c.predictions)) for c in contenders)]:
        if length != len(rows.targets):
            raise ValueError(f"{name} has {length} rows, there are {len(rows.targets)} targets")
    return tuned[0]


def _values(measured: Mapping[Metric, Pooled]) -> dict[Metric, Measured]:
    return {metric: Measured.of(found, interval(found)) for metric, found in measured.items()}
