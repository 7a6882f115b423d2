"""What a search for a text prompt tried, measured and chose: its part of a prompt's manifest."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

from prompt_core.parts import all_texts


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TriedRecord(_Record):
    """A candidate.

    Attributes:
        wording, structure, words, shown, calibrated: as of `Candidate`; `shown` are the first 12 digits of the rows' ids.
        retrieved: demonstrations that each input gets of its own.
        exemplars: rows that are exemplars of their labels, with an encoder.
        tokens: length of its prompt.
        value: mean over the rows that it met: right answers and a tenth of how sure they are, or the log-likelihood per
            target token; None where it showed all of them.
        rows: how many it met; fewer than all where it left the race.
        metric: of a finalist that wrote texts, what they came to, in points of the gate's metric.
    """

    wording: str
    structure: str
    words: dict[str, str | tuple[str, ...]]
    shown: tuple[str, ...]
    retrieved: int = 0
    exemplars: int = 0
    calibrated: bool
    tokens: int
    value: float | None
    rows: int
    metric: float | None = None

    @model_serializer(mode="wrap")
    def _what_there_is(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A candidate without retrieval or exemplars is written without a word of them, as it was before there were any."""
        return {name: value for name, value in written(self).items() if value or name not in ("retrieved", "exemplars")}


class TextSearchRecord(_Record):
    """A whole search.

    Attributes:
        tried: every candidate in order; the first is the task's own prompt.
        chosen: number of the one that was taken.
        pareto: numbers of the finalists that no shorter one equals, the shortest first.
        rejected: wordings that were not tried, and why.
        judged_by: by what the finalists were compared: "accuracy + sureness / 10", the metric, or "log-likelihood" where the budget
            admitted no texts or none of these was right.
        ended: "rounds", "patience", or the limit of the budget that ended it.
        rows: examples, training and validation.
        tokens: through the frozen model.
        dollars: for an endpoint.
        optuna: version of the sampler.
    """

    tried: tuple[TriedRecord, ...]
    chosen: int
    pareto: tuple[int, ...]
    rejected: dict[str, str]
    judged_by: str
    ended: str
    rows: int
    tokens: int
    dollars: float
    optuna: str

    @property
    def best(self) -> TriedRecord:
        """The candidate that was taken."""
        return self.tried[self.chosen]

    @property
    def finalists(self) -> list[TriedRecord]:
        """Those that can be compared: by the metric where texts were written for it, else by the value on all rows."""
        written = [tried for tried in self.tried if tried.metric is not None]
        return written or [tried for tried in self.tried if tried.rows == self.rows and tried.value is not None]

    def summary(self) -> str:
        """One line: how much was tried for what gain over the task's own prompt, and what ended it."""
        own, best = self.tried[0], self.best
        gain = f"{_points(own)} -> {_points(best)} {self.judged_by}"
        return f"{gain}; {len(self.tried)} candidates, {self.tokens:,} tokens, ended by {self.ended}"

    def markdown(self) -> str:
        """All candidates as a Markdown table, the best first."""
        lines = [["candidate", "wording", "structure", "words", "shown", "calibrated", "tokens", "value", "rows", "outcome"]]
        lines.append(["---"] * len(lines[0]))
        for number in sorted(range(len(self.tried)), key=lambda i: (i != self.chosen, -self.tried[i].rows, -_value(self.tried[i]), i)):
            tried = self.tried[number]
            outcome = ["**chosen**" if number == self.chosen else "", "" if number else "the task's own"]
            outcome += ["Pareto" if number in self.pareto else "", "" if tried.metric is None else f"{self.judged_by} {tried.metric:.1f}"]
            words = ", ".join(f"{label}: {' | '.join(all_texts(said))}" for label, said in tried.words.items())
            shown = f"{tried.retrieved} retrieved" if tried.retrieved else str(len(tried.shown) + tried.exemplars)
            choices = [tried.structure, words, shown, "yes" if tried.calibrated else ""]
            measured = [str(tried.tokens), f"{_value(tried):.4f}", str(tried.rows)]
            lines.append([str(number), tried.wording, *choices, *measured, ", ".join(filter(None, outcome))])
        lines += [["", wording, *[""] * 7, f"rejected: {why}"] for wording, why in self.rejected.items()]
        return "\n".join("| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in line) + " |" for line in lines)


def length_and_worth(tried: TriedRecord) -> tuple[int, float]:
    """A point of the Pareto plot."""
    return tried.tokens, _value(tried) if tried.metric is None else tried.metric


def _value(tried: TriedRecord) -> float:
    return float("-inf") if tried.value is None else tried.value


def _points(tried: TriedRecord) -> str:
    return f"{_value(tried):.4f}" if tried.metric is None else f"{tried.metric:.1f}"
