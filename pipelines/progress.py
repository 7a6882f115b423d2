"""Progress as lines with an ETA, a few seconds apart, for logs that people read later."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from prompt_core.trials import shown_score

if TYPE_CHECKING:  # torch loads in the steps that need it, not with the code location
    from prompt_core.text.search import Round
    from prompt_core.tuning import SearchStep, Step


class LoggedProgress:
    """Callbacks for `retune_fleet(on_step=, on_search=, on_round=)` and `evaluate(on_progress=)`.

    Args:
        say: takes a line.
        every_seconds: least time between two lines; the last line of a piece of work is always said.
        detail: takes the lines about single contenders, of which a run of many tasks has too many; by default `say`.
    """

    def __init__(self, say: Callable[[str], object], every_seconds: float, detail: Callable[[str], object] | None = None) -> None:
        self._say, self.every_seconds, self._detail = say, every_seconds, detail or say
        self._last_said = time.monotonic()
        self._work, self._began, self._tasks_began = "", 0.0, 0.0

    def step(self, step: "Step") -> None:
        """An optimizer step."""
        if step.number == step.steps or self._is_time():
            look = f", validation {step.validation_loss:.4f}" if step.validation_loss is not None else ""
            speed = f"{step.tokens_per_second:.0f} tokens/s"
            self._say(f"step {step.number} of {step.steps}: loss {step.loss:.4f}{look}, {speed}, ETA {step.eta_seconds:.0f} s")

    def fleet(self, prompts: int) -> Callable[[int, "Step"], None]:
        """What shows the steps of so many prompts that are tuned side by side; fits `retune_fleet(on_step=)`."""
        if prompts == 1:
            return lambda _, step: self.step(step)
        done, totals, began = [0] * prompts, [0] * prompts, time.monotonic()

        def show(number: int, step: "Step") -> None:
            done[number], totals[number] = step.number, step.steps
            if (all(totals) and sum(done) == sum(totals)) or self._is_time():
                eta = (time.monotonic() - began) / sum(done) * (sum(totals) - sum(done))
                self._say(f"{prompts} prompts: {sum(done)} of {sum(totals)} steps at most, ETA {eta:.0f} s at most")

        return show

    def search(self, step: "SearchStep") -> None:
        """A step of a search over settings; the first after a measurement is always said."""
        where = f"wave {step.wave} of {step.waves}, {step.trials} trials until step {step.rung}"
        if f"{step.task}: {where}" != self._work or self._is_time():
            self._work = f"{step.task}: {where}"
            best = f", best {shown_score(step.best)}" if step.best else ""
            self._say(f"search: {where}, {step.done} of {step.total} prompt-steps{best}, ETA {step.eta_seconds:.0f} s")

    def round(self, round: "Round") -> None:
        """A round of a search for a text prompt; each is said."""
        from prompt_core.text.search import shown_round  # torch is loaded where rounds come from

        found = ", ".join(f"{name} {value}" for name, value in shown_round(round).items())
        self._say(f"text search: round {round.number} of {round.rounds}, {found}, ETA {round.eta_seconds:.0f} s")

    def contender(self, name: str, done: int, total: int) -> None:
        """Rows that a contender has answered."""
        if name != self._work:
            self._work, self._began = name, time.monotonic()
        if done == total or self._is_time():
            eta = (time.monotonic() - self._began) / max(done, 1) * (total - done)
            self._detail(f"{name}: {done} of {total} rows, ETA {eta:.0f} s")

    def task(self, done: int, total: int) -> None:
        """Tasks of a step that makes one after another; nothing is said of a single one."""
        if not done:
            self._tasks_began = time.monotonic()
        elif total > 1 and (done == total or self._is_time()):
            eta = (time.monotonic() - self._tasks_began) / done * (total - done)
            self._say(f"{done} of {total} tasks, ETA {eta:.0f} s")

    def _is_time(self) -> bool:
        due = time.monotonic() - self._last_said >= self.every_seconds
        if due:
            self._last_said = time.monotonic()
        return due
