"""`Evaluation`: all that was measured on the test rows of a task, as plain data, and the same as tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from prompt_core.criteria import Metric
from prompt_core.evaluation.cases import Case, Sample
from prompt_core.evaluation.classes import Classified
from prompt_core.evaluation.contender import Kind
from prompt_core.evaluation.paired import Comparison, Measured, Record
from prompt_core.evaluation.slices import Slice


class Result(Record):
    """What one contender reached."""

    name: str
    kind: Kind
    metrics: dict[Metric, Measured]


class Verdict(Record):
    """Whether the prompt may go live, and a sentence with numbers for each thing that was required."""

    passed: bool
    reasons: tuple[str, ...]


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


class Cost(Record):
    """What an answer takes beside the frozen model.

    Attributes:
        prompt_tokens, prompt_bytes: of the tuned prompt; bytes on disk.
        input_tokens: mean of the test inputs, in tokens, without the prompt.
    """

    prompt_tokens: int
    prompt_bytes: int
    input_tokens: float


class RoundTrip(Record):
    """A prompt written for another stack, read there and compared with ours.

    Attributes:
        stack: where it has to run.
        format: of the export.
        passed: whether the answers are ours.
        detail: what was compared, or why it cannot be.
    """

    stack: str
    format: str
    passed: bool
    detail: str


class Leaked(Record):
    """Of the test rows, what the tuning could have seen; of the training rows, what a prompt in words repeats.

    Attributes:
        exact, near: seen rows whose text, or nearly the same, is held out too.
        copied: runs of 8 words that the wording of a text prompt has from a row, its demonstrations aside.
    """

    exact: int
    near: int
    copied: tuple[str, ...] = ()


class Evaluation(Record):
    """All that was measured on the test rows of a task. Depends on its inputs alone, but for `seconds` and a verdict on these.

    Attributes:
        task: the task's name.
        prompt_digest: of the tuned prompt.
        production_digest: of what else was in production then; None where nothing was, or the prompt itself.
        rows: number of test rows.
        gate_metric, min_gain, alpha: the rule of the gate; the gain in points.
        smallest_gain: the smallest gain in accuracy, in points, that so many rows can show, see `power.smallest_gain`;
            None where there is none or the gate's metric is another.
        contenders: results, in the order given.
        comparisons: the tuned prompt against each other contender, by name and metric.
        samples: up to 8 test rows at even distances, not chosen by result.
        distilled: of a distilled prompt.
        power: a sentence on the smallest gain, see `power.power_sentence`.
        classified: of a classifier.
        slices: results by the values of the columns that the task names.
        before: the contender with which `cases` compares.
        cases: rows chosen by result, see `cases.cases`.
        leaked, cost: None in evaluations of earlier versions.
        round_trips: of the stacks where the task says that the prompt must run.
        seconds: that the answers of a contender to all test rows took, by name.
    """

    task: str
    prompt_digest: str
    production_digest: str | None = None
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
    power: str = ""
    classified: Classified | None = None
    slices: tuple[Slice, ...] = ()
    before: str = ""
    cases: tuple[Case, ...] = ()
    leaked: Leaked | None = None
    cost: Cost | None = None
    round_trips: tuple[RoundTrip, ...] = ()
    seconds: dict[str, float] = Field(default_factory=dict)

    @property
    def tuned(self) -> Result:
        """The contender that is judged."""
        return next(result for result in self.contenders if result.kind == "tuned")

    @property
    def values(self) -> list[list[str]]:
        """Contenders by metrics with 95 % intervals: a grid with its header."""
        rows = [[r.name, *(f"{m.value:.1f} [{m.low:.1f}, {m.high:.1f}]" for m in r.metrics.values())] for r in self.contenders]
        return [["value [95 %]", *self.tuned.metrics], *rows]

    @property
    def gains(self) -> list[list[str]]:
        """The tuned prompt's gains over each other contender with p values: a grid with the same columns as `values`."""
        rows = [[name, *(_gain_cell(comparison) for comparison in by_metric.values())] for name, by_metric in self.comparisons.items()]
        return [[f"{self.tuned.name} against", *self.tuned.metrics], *rows]

    @property
    def savings(self) -> str:
        """Of a distilled prompt, what it saved and cost in one line; else empty."""
        if (found := self.distilled) is None:
            return ""
        nats = ", ".join(f"{name} {value:.3f}" for name, value in found.divergence.items())
        tokens = f"{found.tokens_before} tokens became {found.tokens_after}"
        memory = f"{found.cache_bytes_before / 2**20:.1f} MiB of keys and values {found.cache_bytes_after / 2**20:.1f}"
        return f"{tokens}, {memory}; divergence from the teacher in nats per token: {nats}"

    def table(self) -> str:
        """Plain aligned text for terminals: values with 95 % intervals, the tuned prompt's gains with p values, the verdict."""
        values, gains = self.values, self.gains
        widths = [max(map(len, column)) for column in zip(*values, *gains, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (*values, *gains)]
        lines.insert(len(values), "")
        reasons = [f"  - {reason}" for reason in self.verdict.reasons]
        return "\n".join([self._title, "", *lines, "", *self._savings_lines, self._outcome, *reasons, *filter(None, [self.power])])

    def markdown(self) -> str:
        """The same as `table`, in Markdown."""
        outcome = [f"**{self._outcome}**", "", *(f"- {reason}" for reason in self.verdict.reasons)]
        tables = [*markdown_table(self.values), "", *markdown_table(self.gains)]
        return "\n".join([self._title, "", *tables, "", *self._savings_lines, *outcome])

    @property
    def _savings_lines(self) -> list[str]:
        return [self.savings, ""] if self.savings else []

    @property
    def _title(self) -> str:
        return f"{self.task}: {self.rows} test rows, prompt {self.prompt_digest[:12]}"

    @property
    def _outcome(self) -> str:
        return f"gate {'passed' if self.verdict.passed else 'failed'}"


def markdown_table(grid: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table; the first row of the grid is its header."""
    rows = ["| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in row) + " |" for row in grid]
    return [rows[0], "|" + " --- |" * len(grid[0]), *rows[1:]]


def shown_p(p: float) -> str:
    """A p value for people."""
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def _gain_cell(found: Comparison) -> str:
    return f"{found.gain:+.1f} [{found.low:.1f}, {found.high:.1f}] p {shown_p(found.p_better)}"
