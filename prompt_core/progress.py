"""Progress bars with ETA for the terminal, from the callbacks of tuning, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NoReturn, Self, TextIO

import click
from tqdm import tqdm

from prompt_core.text.search import Round, shown_round
from prompt_core.trials import shown_score
from prompt_core.tuning import SearchStep, Step


class Progress:
    """A bar that follows one piece of work after another; silent where the output is no terminal.

    Use as a context manager. `step` fits `tune(on_step=)`, `contender` fits `evaluate(on_progress=)`, `rows` fits
    `TunedPrompt.predict(on_progress=)`.

    Args:
        title: what stands in front of the bar.
        always: draw bars even where the file is no terminal.
        file: where to draw them; default: standard error.
    """

    def __init__(self, title: str, always: bool = False, file: TextIO | None = None) -> None:
        self._title, self._hidden, self._file = title, None if not always else False, file
        self._bar: tqdm[NoReturn] | None = None
        self._label = self._validation = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def fleet(self, prompts: int) -> Callable[[int, Step], None]:
        """What shows the steps of so many prompts that are tuned side by side; fits `tune_fleet(on_step=)`."""
        if prompts == 1:
            return lambda _, step: self.step(step)
        done, totals = [0] * prompts, [0] * prompts

        def show(number: int, step: Step) -> None:
            done[number], totals[number] = step.number, step.steps
            bar = self._at(f"{self._title}: tuning", sum(totals), "step")
            bar.total = sum(totals)
            bar.update(sum(done) - bar.n)

        return show

    def step(self, step: Step) -> None:
        """Show an optimizer step: its loss, speed and the last validation loss."""
        bar = self._at(f"{self._title}: tuning", step.steps, "step")
        bar.total = step.steps  # a round of self-training has more
        shown = {"loss": f"{step.loss:.3f}", "tok/s": f"{step.tokens_per_second:.0f}"}
        if step.validation_loss is not None:
            self._validation = f"{step.validation_loss:.3f}"
        if self._validation:
            shown["val"] = self._validation
        bar.set_postfix(shown, refresh=False)
        bar.update(step.number - bar.n)

    def search(self, step: SearchStep) -> None:
        """Show how far a search is, in steps of all its prompts, and the best that it has found; fits `tune(on_search=)`."""
        bar = self._at(f"{step.task}: search", step.total, "step")
        bar.total = step.total
        shown = {"wave": f"{step.wave}/{step.waves}", "trials": str(step.trials)}
        bar.set_postfix(shown | ({"best": shown_score(step.best)} if step.best else {}), refresh=False)
        bar.update(step.done - bar.n)

    def round(self, round: Round) -> None:
        """Show a round of a search for a text prompt, the best so far and what is spent; fits `tune(on_round=)`."""
        bar = self._at(f"{round.task}: text search", round.rounds, "round")
        bar.set_postfix(shown_round(round), refresh=False)
        bar.update(round.number - bar.n)

    def contender(self, name: str, done: int, total: int) -> None:
        """Show how many test rows a contender has answered."""
        bar = self._at(f"{self._title}: {name}", total, "row")
        bar.update(done - bar.n)

    def rows(self, done: int, total: int) -> None:
        """Show how many inputs are predicted."""
        self.contender("predicting", done, total)

    def _at(self, label: str, total: int, unit: str) -> tqdm[NoReturn]:
        if self._bar is None or self._label != label:
            self._close()
            self._label = label
            self._bar = tqdm(total=total, desc=label, unit=unit, file=self._file, disable=self._hidden, dynamic_ncols=True)
        return self._bar

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def said_first(line: str, callbacks: Mapping[str, Callable[..., None]]) -> dict[str, Callable[..., None]]:
    """The callbacks, of which the first that is called says the line on standard error: the work has begun, nothing is refused any more."""
    unsaid = [line]

    def saying(callback: Callable[..., None]) -> Callable[..., None]:
        def call(*news: Any) -> None:
            if unsaid:
                click.echo(unsaid.pop(), err=True)
            callback(*news)

        return call

    return {name: saying(callback) for name, callback in callbacks.items()}
