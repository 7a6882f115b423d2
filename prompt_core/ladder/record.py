"""What a ladder from text to soft and deep prompts measured and chose: its part of a prompt's manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from prompt_core.criteria import Metric
from prompt_core.trials import Measured, shown_score


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rung(_Record):
    """One way to a prompt, at its best.

    Attributes:
        name: `text`; `text -> deep` and `text -> soft` started from it; `deep` and `soft` from the task's own root.
        kind: of its prompts.
        best: on the held-out rows, after as many steps; None where no trial could be measured.
        tokens: length of the prompt; None likewise.
        trial: number of its best trial, from 0; None of the text.
        tried: candidates of the text search, or trials.
        prompt_steps: steps of all prompts of its trials.
        reason: why nothing could be measured.
    """

    name: str
    kind: Literal["text", "deep", "soft"]
    best: Measured | None
    tokens: int | None
    trial: int | None
    tried: int
    prompt_steps: int
    reason: str | None = None


class LadderRecord(_Record):
    """A whole ladder.

    Attributes:
        rungs: in the order in which they were climbed.
        chosen: number of the one that was taken, see `preferred`.
        score: what was measured on every rung, see `SearchRecord.score`; less is better.
        metric: what was measured of the texts that they wrote; None where the task writes none.
        held_out: the validation rows, which no rung was made from; or, where there are none, all rows, each by prompts
            that were searched and tuned without it.
        rows: how many these are.
        text: the part `text` of the task file.
    """

    rungs: tuple[Rung, ...]
    chosen: int
    score: Literal["log loss", "loss per target token"]
    metric: Metric | None = None
    held_out: Literal["validation rows", "folds"]
    rows: int
    text: dict[str, Any]

    @property
    def best(self) -> Rung:
        """The rung that was taken."""
        return self.rungs[self.chosen]

    def summary(self) -> str:
        """One line: the rungs with their scores, the one that was taken in brackets."""
        shown = [f"{rung.name} {shown_score(rung.best) if rung.best else 'failed'}" for rung in self.rungs]
        shown[self.chosen] = f"[{shown[self.chosen]}]"
        return f"{'; '.join(shown)} ({self.score} on {self.rows} {'rows in folds' if self.held_out == 'folds' else self.held_out})"

    def markdown(self, seconds: Mapping[str, float]) -> str:
        """The rungs as a Markdown table; `seconds` by name, where they are known."""
        lines = [["rung", self.score, self.metric or "accuracy", "tokens", "steps", "tried", "seconds", "outcome"]]
        lines.append(["---"] * len(lines[0]))
        for number, rung in enumerate(self.rungs):
            best = rung.best
            measured = [f"{best.score:.4f}", _shown_points(best)] if best else ["", ""]
            size = ["" if rung.tokens is None else str(rung.tokens), str(best.steps) if best else "", str(rung.tried)]
            took = f"{seconds[rung.name]:.1f}" if rung.name in seconds else ""
            outcome = "**chosen**" if number == self.chosen else rung.reason or ""
            lines.append([rung.name, *measured, *size, took, outcome])
        return "\n".join("| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in line) + " |" for line in lines)


def _shown_points(best: Measured) -> str:
    if best.metric is not None:
        return f"{best.metric:.1f} ± {best.error or 0.0:.1f}"
    return "" if best.accuracy is None else f"{best.accuracy:.1%}"
