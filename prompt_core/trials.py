"""What a search over settings tried, measured and chose: its part of a prompt's manifest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from prompt_core.space import Setting


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Measured(_Record):
    """A trial on its held-out examples after some steps.

    Attributes:
        steps: optimizer steps of each fold's prompt.
        score: less is better, see `SearchRecord.score`.
        accuracy: share of the held-out examples that are right, for a classifier.
        metric: of the texts that it writes for them, in points, and `error` its standard error; None where it was not asked to write.
    """

    steps: int
    score: float
    accuracy: float | None = None
    metric: float | None = None
    error: float | None = None


class Trial(_Record):
    """One set of settings.

    Attributes:
        settings: value by path in the task file.
        rungs: what was measured, by steps.
        outcome: `complete` after all rungs; `dropped` because others of its wave were better; `failed` for `reason`;
            `stopped` by the time; None while it runs.
    """

    settings: dict[str, Setting]
    rungs: tuple[Measured, ...] = ()
    outcome: Literal["complete", "dropped", "failed", "stopped"] | None = None
    reason: str | None = None

    @property
    def best(self) -> Measured | None:
        """The rung that is preferred; none of a trial that failed."""
        return self.rungs[preferred(self.rungs)] if self.rungs and self.outcome != "failed" else None

    @property
    def kind_and_start(self) -> tuple[str, str]:
        """What its prompts are, and what they start from; empty where that is not searched, or is the default."""
        return str(self.settings.get("prompt.kind") or ""), str(self.settings.get("prompt.start") or "")


class SearchRecord(_Record):
    """A whole search.

    Attributes:
        spec: the search as the task file asks for it, with the space that it came to.
        score: what was measured: a classifier's log loss at the best temperature, else the loss per target token.
        chosen: number of the trial, from 0, whose settings and best rung were taken.
        ended: what ended it: the number of trials, the time, or a space in which everything was tried.
        rows: examples that were held out once in each trial.
        prompt_steps: steps of all prompts of all folds.
        tokens: what tuning and measuring took through the frozen model, without prompts.
        optuna: version of the sampler.
    """

    spec: dict[str, Any]
    score: Literal["log loss", "loss per target token"]
    trials: tuple[Trial, ...]
    chosen: int
    ended: Literal["trials", "time", "space"]
    rows: int
    prompt_steps: int
    tokens: int
    optuna: str

    @property
    def settings(self) -> dict[str, Setting]:
        """The settings chosen, `tune.steps` among them."""
        return {**self.trials[self.chosen].settings, "tune.steps": self.best.steps}

    @property
    def best(self) -> Measured:
        """What the chosen settings gave on held-out examples."""
        best = self.trials[self.chosen].best
        assert best is not None  # it was chosen by it
        return best

    def summary(self) -> str:
        """One line: what was chosen, from how much."""
        chosen = ", ".join(f"{path.partition('.')[2]} {_shown(value)}" for path, value in self.settings.items())
        return f"{chosen} ({self.score} {shown_score(self.best)}; {len(self.trials)} trials, {self.prompt_steps:,} prompt-steps)"

    def grid(self) -> list[list[str]]:
        """All trials below a header, the chosen one first, then by score."""
        paths = list(dict.fromkeys(path for trial in self.trials for path in trial.settings))
        order = sorted(range(len(self.trials)), key=lambda number: (number != self.chosen, _value(self.trials[number]), number))
        lines = [["trial", *paths, "steps", self.score, "accuracy" if self.score == "log loss" else "writes", "outcome"]]
        for number in order:
            trial = self.trials[number]
            best = trial.best
            outcome = "chosen" if number == self.chosen else trial.reason or trial.outcome or ""
            measured = _cells(best) if best else [""] * 3
            lines.append([str(number + 1), *(_shown(trial.settings.get(path)) for path in paths), *measured, outcome])
        return lines

    def markdown(self) -> str:
        """The same as a Markdown table."""
        header, *rows = self.grid()
        named = [f"`{name}`" if "." in name else name for name in header]
        lines = [named, ["---"] * len(header), *([*row[:-1], "**chosen**" if row[-1] == "chosen" else row[-1]] for row in rows)]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def preferred(measured: Sequence[Measured]) -> int:
    """The number of the best: the least score, the earlier of equal ones; where any was asked to write and got something right,
    the least score of those that wrote as well as the best of them, but for its standard error (Breiman et al. 1984).

    How likely the right text is does not say which of two kinds of prompts writes better: a tuned prefix is surer of itself
    than words are, also where it errs.
    """
    best = max(measured, key=lambda one: one.metric or 0.0)
    if best.metric:
        able = [n for n, one in enumerate(measured) if one.metric is not None and one.metric >= best.metric - (best.error or 0.0)]
    else:
        able = list(range(len(measured)))
    return min(able, key=lambda n: (measured[n].score, n))


def shown_score(measured: Measured) -> str:
    """A score for people: `0.412, accuracy 81.2 %`, or `1.204, writes 42.1`, in points of the gate's metric."""
    points = "" if measured.metric is None else f", writes {measured.metric:.1f}"
    return f"{measured.score:.4f}" + ("" if measured.accuracy is None else f", accuracy {100 * measured.accuracy:.1f} %") + points


def _cells(best: Measured) -> list[str]:
    points = "" if best.metric is None else f"{best.metric:.1f}"
    return [str(best.steps), f"{best.score:.4f}", points if best.accuracy is None else f"{best.accuracy:.1%}"]


def _value(trial: Trial) -> float:
    return trial.best.score if trial.best else float("inf")


def _shown(value: Setting) -> str:
    return "default" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
