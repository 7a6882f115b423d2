"""One member's way through its tuning: optimizer, schedule, average, early stopping, history, and the way back."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from prompt_core.encoded import Encoded
from prompt_core.errors import PromptmillError
from prompt_core.manifest import TuningRecord, Validation
from prompt_core.tuning.checkpoint import Snapshot
from prompt_core.tuning.member import Member, Part, Step
from prompt_core.tuning.schedule import rate_factor

_ROLLBACKS = 3
_ADAM = ("step", "exp_avg", "exp_avg_sq")


class Run:
    """The state of one member. It never sees the backbone.

    AdamW works on the distance from the start, in the prompt's units: weight decay pulls back to the start instead of to
    zero, and a rate means the same in every layer. What is validated and kept is a running average of the parameters
    (Polyak & Juditsky 1992): with few examples single steps are noisy, and their mean generalises better.

    A loss or gradient that is not finite takes the run back to its last snapshot, at half the learning rate; after the
    third time it ends with an error.
    """

    def __init__(self, member: Member) -> None:
        self.member, self.spec = member, member.spec
        self.steps = member.spec.steps_for(max(len(part.train) for part in member.parts))
        self.looks_at = [part for part in member.parts if part.validation]
        modules = [module for part in member.parts for module in (part.prompt, part.objective)]
        everything = dict.fromkeys(parameter for module in modules for parameter in module.parameters())  # shared ones once
        self.parameters = [parameter for parameter in everything if parameter.requires_grad]
        units = {parameter: unit for part in member.parts for parameter, unit in part.prompt.units().items()}
        self._units = [units.get(parameter, torch.ones((), device=parameter.device)) for parameter in self.parameters]
        self._start = [parameter.detach().clone() for parameter in self.parameters]
        self._moved = [nn.Parameter(torch.zeros_like(parameter)) for parameter in self.parameters]
        self._average = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._optimizer = torch.optim.AdamW(self._moved, lr=self.spec.learning_rate, weight_decay=self.spec.weight_decay)
        self._waiting: list[list[int]] = [[] for _ in member.parts]
        self._losses: list[float] = []
        self._looks: list[Validation] = []
        self._best: tuple[float, int, list[Tensor]] | None = None
        self._rollbacks: list[int] = []
        self._error: PromptmillError | None = None
        self._tokens = 0  # that were trained, those of steps that were taken back too
        self._measure_from_here()
        self._stepped, self._loss, self._rate = False, 0.0, 0.0
        self._validation_loss: float | None = None
        self._good = self.snapshot()

    @property
    def done(self) -> int:
        """Steps so far."""
        return len(self._losses)

    @property
    def error(self) -> PromptmillError | None:
        """What ended the tuning, if something did."""
        return self._error

    @property
    def goes_on(self) -> bool:
        """Whether there is a next step: neither failed, nor through, nor out of patience."""
        waited = self.done - self._best[1] if self._best else 0
        return self._error is None and self.done < self.steps and waited < self.spec.patience * self.spec.validate_every

    @property
    def looks_now(self) -> bool:
        """Whether the step that just ended is followed by a look at the validation loss."""
        due = self.done % self.spec.validate_every == 0 or self.done == self.steps
        return self._stepped and bool(self.looks_at) and due

    def begin_step(self) -> list[tuple[Part, list[Encoded]]]:
        """The next batch of each part, with the parameters in place for it."""
        if self.done % self.spec.checkpoint_every == 0:
            self._good = self.snapshot()
        self._place(self._moved, training=True)
        work = [(part, self._batch(number, part)) for number, part in enumerate(self.member.parts)]
        self._tokens += sum(len(e.input) + len(e.target) for _, batch in work for e in batch)
        return work

    def end_step(self, losses: Mapping[Part, float]) -> None:
        """Move the parameters along the gradients that a pass left in them."""
        parts = self.member.parts
        loss = sum(losses[part] for part in parts) / len(parts)
        self._stepped = math.isfinite(loss + sum(float(p.grad.sum()) for p in self.parameters if p.grad is not None))
        if not self._stepped:
            self._roll_back(loss)
            return
        factor = rate_factor(self.done, self.steps, self.spec.warmup, self.spec.decay)
        self._rate = self.spec.learning_rate * factor * 0.5 ** len(self._rollbacks)
        self._optimizer.param_groups[0]["lr"] = self._rate
        for parameter, distance, unit in zip(self.parameters, self._moved, self._units, strict=True):
            if parameter.grad is not None:
                distance.grad, parameter.grad = parameter.grad.mul_(unit / len(parts)), None
        nn.utils.clip_grad_norm_(self._moved, self.spec.clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._losses.append(round(loss, 6))
        self._loss, self._validation_loss = loss, None
        self._update_average()

    def show_average(self) -> None:
        """Put the running average in place, to be looked at."""
        self._place(self._average, training=False)

    def look(self, losses: Mapping[Part, float]) -> None:
        """Note the validation loss of the running average, and the average itself where it is the best so far; one that is not
        finite is worse than any other."""
        loss = self._validation_loss = sum(losses[part] for part in self.looks_at) / len(self.looks_at)
        finite = math.isfinite(loss)
        self._looks.append(Validation(step=self.done, loss=round(loss, 6) if finite else None))
        comparable = loss if finite else math.inf
        if self._best is None or comparable < self._best[0]:
            self._best = (comparable, self.done, [value.clone() for value in self._average])

    def fail(self, error: PromptmillError) -> None:
        """End the tuning with an error."""
        self.forget_gradients()
        self._error, self._stepped = error, False

    def report(self) -> None:
        """Tell whoever follows this member about the step that just ended."""
        if self.member.on_step and self._stepped:
            seconds = time.monotonic() - self._began
            eta = seconds / (self.done - self._done_before) * (self.steps - self.done)
            speed = (self._tokens - self._tokens_before) / seconds
            step = Step(self.done, self.steps, self._loss, self._validation_loss, self._rate, speed, eta, self._tokens)
            self.member.on_step(step)

    def finish(self) -> TuningRecord | PromptmillError:
        """Put what is kept in place, let the objectives settle behind it, and give the history, or the error."""
        if self._error:
            return self._error
        kept_step, kept = self._best[1:] if self._best else (self.done, self._average)
        self._place(kept, training=False)
        for part in self.member.parts:
            part.objective.settle(part.prompt.state(), part.train)
        return TuningRecord(
            steps=self.done,
            kept_step=kept_step,
            train_loss=tuple(self._losses),
            validation=tuple(self._looks),
            rollbacks=tuple(self._rollbacks),
        )

    def snapshot(self) -> Snapshot:
        """Everything that the next step depends on; `restore` goes on from it with the same bits."""
        tensors = {"generator": self.member.generator.get_state()}
        for name, values in (("moved", self._moved), ("average", self._average), ("best", self._best[2] if self._best else [])):
            tensors |= {f"{name}.{i}": value.detach().clone() for i, value in enumerate(values)}
        for i, distance in enumerate(self._moved):
            tensors |= {f"{part}.{i}": value.clone() for part, value in self._optimizer.state.get(distance, {}).items()}
        facts: dict[str, Any] = {
            "waiting": [list(waiting) for waiting in self._waiting],
            "losses": list(self._losses),
            "looks": [(look.step, look.loss) for look in self._looks],
            "best": self._best[:2] if self._best else None,
            "rollbacks": list(self._rollbacks),
            "tokens": self._tokens,
            "error": (self._error.where, self._error.what, self._error.fix) if self._error else None,
        }
        return Snapshot(tensors, facts)

    def checkpoint(self) -> Snapshot:
        """`snapshot` for another process, with the way back of a run that is between two states to return to."""
        between = self.goes_on and self.done % self.spec.checkpoint_every > 0
        return replace(self.snapshot(), back=self._good) if between else self.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """Go back, or on, to what `snapshot` or `checkpoint` gave."""
        tensors, facts = snapshot.tensors, snapshot.facts
        self.member.generator.set_state(tensors["generator"])
        self._optimizer.state.clear()
        for i, (distance, average) in enumerate(zip(self._moved, self._average, strict=True)):
            distance.data.copy_(tensors[f"moved.{i}"])
            average.copy_(tensors[f"average.{i}"])
            if f"step.{i}" in tensors:
                on_device = {part: tensors[f"{part}.{i}"].clone() for part in _ADAM}
                self._optimizer.state[distance] = {
                    part: value if part == "step" else value.to(distance.device) for part, value in on_device.items()
                }
        self._waiting = [list(waiting) for waiting in facts["waiting"]]
        self._losses = list(facts["losses"])
        self._looks = [Validation(step=step, loss=loss) for step, loss in facts["looks"]]
        self._best = None
        if facts["best"]:
            best = [tensors[f"best.{i}"].to(average.device).clone() for i, average in enumerate(self._average)]
            self._best = (*facts["best"], best)
        self._rollbacks = list(facts["rollbacks"])
        self._error = PromptmillError(*facts["error"]) if facts["error"] else None
        self._good = snapshot.back or snapshot
        self._tokens = facts["tokens"]
        self._measure_from_here()

    def forget_gradients(self) -> None:
        """Drop what an interrupted pass left in the parameters."""
        for parameter in self.parameters:
            parameter.grad = None

    def _roll_back(self, loss: float) -> None:
        number, rollbacks = self.done + 1, [*self._rollbacks, self.done + 1]
        self.forget_gradients()
        if len(rollbacks) > _ROLLBACKS:
            what = f"the training loss is {loss}, also after {_ROLLBACKS} returns to the last good state at half the learning rate"
            self._error = PromptmillError(f"step {number}", what, "Lower tune.learning_rate.")
            return
        tokens = self._tokens
        self.restore(self._good)
        self._rollbacks, self._tokens = rollbacks, tokens
        self._measure_from_here()

    def _measure_from_here(self) -> None:
        """Speed and the time that is left follow from the steps after this one."""
        self._began, self._done_before, self._tokens_before = time.monotonic(), self.done, self._tokens

    def _batch(self, number: int, part: Part) -> list[Encoded]:
        """The next examples of a part, in the random order that its objective draws round by round."""
        waiting, size = self._waiting[number], self.spec.batch_examples
        while len(waiting) < min(size, len(part.train)):
            waiting += part.objective.order(part.train, size, self.member.generator)
        taken, self._waiting[number] = waiting[:size], waiting[size:]
        return [part.train[i] for i in taken]

    @torch.no_grad()
    def _update_average(self) -> None:
        """Exponential, but the first updates weigh equally, so that the start does not linger."""
        keep = min(self.spec.average, 1 - 1 / self.done)
        for value, moved in zip(self._average, self._moved, strict=True):
            value.lerp_(moved, 1 - keep)

    @torch.no_grad()
    def _place(self, moved: Sequence[Tensor], training: bool) -> None:
        for parameter, origin, distance, unit in zip(self.parameters, self._start, moved, self._units, strict=True):
            torch.addcmul(origin, distance, unit, out=parameter.data)
        for part in self.member.parts:
            part.objective.train(training)
