"""The gradient loop: one prompt or a fleet of them on one frozen backbone, the best of each on validation kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor, nn

from prompt_core.artifact import TuningRecord, Validation
from prompt_core.backbone import Backbone
from prompt_core.data.packing import pack
from prompt_core.encoding import Encoded
from prompt_core.errors import PromptmillError
from prompt_core.prompts import Prompt, PromptState, Tree, hidden_states
from prompt_core.task import TuneSpec
from prompt_core.tuning.objective import Objective
from prompt_core.tuning.schedule import rate_factor


@dataclass(frozen=True)
class Step:
    """What a progress bar or a run log shows after a step.

    Attributes:
        number, steps: this step (from 1) and the last one, if patience does not end the tuning before.
        loss: mean training loss of the step's batch.
        validation_loss: of the averaged prompt, where this step looked at it.
        learning_rate: of this step.
        tokens_per_second: example tokens trained per second so far.
        eta_seconds: expected time to the last step.
    """

    number: int
    steps: int
    loss: float
    validation_loss: float | None
    learning_rate: float
    tokens_per_second: float
    eta_seconds: float


OnStep = Callable[[Step], None]


@dataclass(frozen=True, eq=False)
class Part:
    """A prompt with its task. It is tuned in place.

    Attributes:
        prompt, objective: end as the running average at the best look at the validation loss, or after the last step
            where there are no validation examples.
        train, validation: encoded examples; `validation` may be empty.
    """

    prompt: Prompt
    objective: Objective
    train: Sequence[Encoded]
    validation: Sequence[Encoded]


@dataclass(frozen=True, eq=False)
class Member:
    """What one optimizer of a fleet tunes: usually one prompt, or several that have parameters in common.

    Attributes:
        parts: the prompts; the loss is the mean of theirs.
        spec: settings of the optimizer, the schedule and the looks.
        generator: the random stream, on the CPU; it orders the examples.
        on_step: called after every step of this member.
    """

    parts: Sequence[Part]
    spec: TuneSpec
    generator: torch.Generator
    on_step: OnStep | None = None


def optimise(backbone: Backbone, members: Sequence[Member]) -> list[TuningRecord | PromptmillError]:
    """Tune the prompts of a fleet side by side; what becomes of one does not depend on the others, but for rounding.

    Every pass through the backbone holds the trees of as many prompts as the largest `batch_tokens` among them admits.
    AdamW works on the distance from the start, so that weight decay pulls back to the start instead of to zero. What is
    validated and kept is a running average of the parameters (Polyak & Juditsky 1992): with few examples single steps
    are noisy, and their mean generalises better.

    Returns:
        For each member how its tuning went, or the error that took it out of the fleet (a loss that is not finite).
    """
    runs = [_Run(member) for member in members]
    budget = max(member.spec.batch_tokens for member in members)
    while going := [run for run in runs if run.goes_on]:
        work = [pair for run in going for pair in run.begin_step()]
        with_gradients = _pass_losses(backbone, work, budget, backward=True)
        for run in going:
            run.end_step(with_gradients)
        looking = [run for run in going if run.looks_now]
        if looking:
            for run in looking:
                run.show_average()
            with torch.no_grad():
                held = [(part, part.validation) for run in looking for part in run.looks_at]
                held_out = _pass_losses(backbone, held, budget, backward=False)
            for run in looking:
                run.look(held_out)
        for run in going:
            run.report()
    return [run.finish() for run in runs]


class _Run:
    """One member's optimizer, schedule, average, early stopping and history. It never sees the backbone."""

    def __init__(self, member: Member) -> None:
        self.member, self.spec = member, member.spec
        self.looks_at = [part for part in member.parts if part.validation]
        modules = [module for part in member.parts for module in (part.prompt, part.objective)]
        everything = dict.fromkeys(parameter for module in modules for parameter in module.parameters())  # shared ones once
        self._parameters = [parameter for parameter in everything if parameter.requires_grad]
        self._start = [parameter.detach().clone() for parameter in self._parameters]
        self._moved = [nn.Parameter(torch.zeros_like(parameter)) for parameter in self._parameters]
        self._average = _Average(self._moved, self.spec.average)
        self._optimizer = torch.optim.AdamW(self._moved, lr=self.spec.learning_rate, weight_decay=self.spec.weight_decay)
        self._batches = [_batches(part.train, self.spec.batch_examples, member.generator) for part in member.parts]
        self._losses: list[float] = []
        self._looks: list[Validation] = []
        self._best: tuple[float, int, list[Tensor]] | None = None
        self._error: PromptmillError | None = None
        self._tokens, self._began = 0, time.monotonic()
        self._loss, self._rate = 0.0, 0.0
        self._validation_loss: float | None = None

    @property
    def goes_on(self) -> bool:
        """Whether there is a next step: neither failed, nor through, nor out of patience."""
        done = len(self._losses)
        waited = done - self._best[1] if self._best else 0
        return self._error is None and done < self.spec.steps and waited < self.spec.patience * self.spec.validate_every

    @property
    def looks_now(self) -> bool:
        """Whether the step that just ended is followed by a look at the validation loss."""
        done = len(self._losses)
        due = done % self.spec.validate_every == 0 or done == self.spec.steps
        return self._error is None and bool(self.looks_at) and due

    def begin_step(self) -> list[tuple[Part, list[Encoded]]]:
        """The next batch of each part, with the parameters in place for it."""
        self._place(self._moved, training=True)
        work = [(part, next(batches)) for part, batches in zip(self.member.parts, self._batches, strict=True)]
        self._tokens += sum(len(e.input) + len(e.target) for _, batch in work for e in batch)
        return work

    def end_step(self, losses: Mapping[Part, float]) -> None:
        """Move the parameters along the gradients that a pass left in them."""
        parts = self.member.parts
        number, loss = len(self._losses) + 1, sum(losses[part] for part in parts) / len(parts)
        if not math.isfinite(loss + sum(float(p.grad.sum()) for p in self._parameters if p.grad is not None)):
            self._error = PromptmillError(f"step {number}", f"the training loss is {loss}", "Lower tune.learning_rate.")
            return
        self._rate = self.spec.learning_rate * rate_factor(number - 1, self.spec.steps, self.spec.warmup)
        self._optimizer.param_groups[0]["lr"] = self._rate
        for parameter, distance in zip(self._parameters, self._moved, strict=True):
            if parameter.grad is not None:
                distance.grad, parameter.grad = parameter.grad.div_(len(parts)), None
        nn.utils.clip_grad_norm_(self._moved, self.spec.clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._average.update(self._moved)
        self._losses.append(round(loss, 6))
        self._loss, self._validation_loss = loss, None

    def show_average(self) -> None:
        """Put the running average in place, to be looked at."""
        self._place(self._average.values, training=False)

    def look(self, losses: Mapping[Part, float]) -> None:
        """Note the validation loss of the running average, and the average itself where it is the best so far."""
        loss = self._validation_loss = sum(losses[part] for part in self.looks_at) / len(self.looks_at)
        self._looks.append(Validation(step=len(self._losses), loss=round(loss, 6)))
        if self._best is None or loss < self._best[0]:
            self._best = (loss, len(self._losses), [value.clone() for value in self._average.values])

    def report(self) -> None:
        """Tell whoever follows this member about the step that just ended."""
        if self.member.on_step and self._error is None:
            done, seconds = len(self._losses), time.monotonic() - self._began
            eta = seconds / done * (self.spec.steps - done)
            step = Step(done, self.spec.steps, self._loss, self._validation_loss, self._rate, self._tokens / seconds, eta)
            self.member.on_step(step)

    def finish(self) -> TuningRecord | PromptmillError:
        """Put what is kept in place and give the history, or the error."""
        if self._error:
            return self._error
        kept_step, kept = self._best[1:] if self._best else (len(self._losses), self._average.values)
        self._place(kept, training=False)
        looks = tuple(self._looks)
        return TuningRecord(steps=len(self._losses), kept_step=kept_step, train_loss=tuple(self._losses), validation=looks)

    @torch.no_grad()
    def _place(self, moved: Sequence[Tensor], training: bool) -> None:
        for parameter, origin, distance in zip(self._parameters, self._start, moved, strict=True):
            torch.add(origin, distance, out=parameter.data)
        for part in self.member.parts:
            part.objective.train(training)


class _Average:
    """Exponential running average whose first updates weigh equally, so that the start does not linger."""

    def __init__(self, tensors: Sequence[Tensor], decay: float) -> None:
        self.values = [tensor.detach().clone() for tensor in tensors]
        self._decay, self._updates = decay, 0

    @torch.no_grad()
    def update(self, tensors: Sequence[Tensor]) -> None:
        self._updates += 1
        keep = min(self._decay, 1 - 1 / self._updates)
        for value, tensor in zip(self.values, tensors, strict=True):
            value.lerp_(tensor, 1 - keep)


def _pass_losses(backbone: Backbone, work: Sequence[tuple[Part, Sequence[Encoded]]], budget: int, backward: bool) -> dict[Part, float]:
    """The mean loss of each part over its examples, and with `backward` its gradients in its parameters.

    A part whose loss is not finite stays out of the passes that follow, and out of the gradients of the one it spoils.
    """
    weights = {part: sum(map(part.objective.weight, examples)) for part, examples in work}
    states = {part: _Leaves(part.prompt.state(), backward) for part, _ in work}
    totals = dict.fromkeys(weights, 0.0)
    items = [(part, example) for part, examples in work for example in examples]
    for packed in pack(items, lambda item: item[0].objective.tokens(item[1]), budget):
        batches = {part: [example for _, example in group] for part, group in groupby(packed, key=lambda item: item[0])}
        while batches := {part: batch for part, batch in batches.items() if math.isfinite(totals[part])}:
            trees = [Tree(states[part].state, *part.objective.segments(batch)) for part, batch in batches.items()]
            hidden = hidden_states(backbone, trees)
            losses = torch.stack(
                [part.objective.loss(own, batch) / weights[part] for (part, batch), own in zip(batches.items(), hidden, strict=True)]
            )
            spoiled = not torch.isfinite(losses).all()
            for part, value in zip(batches, losses.tolist(), strict=True):
                totals[part] += value if not spoiled or not math.isfinite(value) else 0.0
            if not spoiled:
                if backward:
                    losses.sum().backward()  # type: ignore[no-untyped-call]
                break
    for leaves in states.values():
        leaves.pass_on()
    return totals


class _Leaves:
    """A prompt's state, cut off from how it is made: that is evaluated once, however many passes a step takes."""

    def __init__(self, made: PromptState, backward: bool) -> None:
        self._made = [made.rows, made.keys, made.values]
        self._cut = [tensor.detach().requires_grad_(backward and tensor.requires_grad) for tensor in self._made]
        rows, keys, values = self._cut
        self.state = replace(made, rows=rows, keys=keys, values=values)

    def pass_on(self) -> None:
        """Hand the gradients that the passes left on to what made the state."""
        pairs = [(made, cut.grad) for made, cut in zip(self._made, self._cut, strict=True) if cut.grad is not None]
        if pairs:
            torch.autograd.backward([made for made, _ in pairs], [grad for _, grad in pairs])


def _batches(examples: Sequence[Encoded], size: int, generator: torch.Generator) -> Iterator[list[Encoded]]:
    """Endless batches in a random order that is drawn anew for every pass over the examples."""
    waiting: list[int] = []
    while True:
        while len(waiting) < min(size, len(examples)):
            waiting += torch.randperm(len(examples), generator=generator).tolist()
        taken, waiting = waiting[:size], waiting[size:]
        yield [examples[i] for i in taken]
