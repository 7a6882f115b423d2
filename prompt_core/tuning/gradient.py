"""The gradient loop: one prompt or a fleet of them on one frozen backbone, the best of each on validation kept."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
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
class Member:
    """One prompt of a fleet, with everything that decides how it is tuned.

    Attributes:
        prompt, objective: tuned in place. The prompt ends as the running average at the best look at the validation
            loss, or after the last step where there are no validation examples.
        train, validation: encoded examples; `validation` may be empty.
        spec: its settings.
        generator: its random stream, on the CPU; it orders the examples.
        on_step: called after every one of its steps.
    """

    prompt: Prompt
    objective: Objective
    train: Sequence[Encoded]
    validation: Sequence[Encoded]
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
        work = [(run, run.begin_step()) for run in going]
        with_gradients = _pass_losses(backbone, work, budget, backward=True)
        for run in going:
            run.end_step(with_gradients[run])
        looking = [run for run in going if run.looks_now]
        if looking:
            for run in looking:
                run.show_average()
            with torch.no_grad():
                held_out = _pass_losses(backbone, [(run, run.member.validation) for run in looking], budget, backward=False)
            for run in looking:
                run.look(held_out[run])
        for run in going:
            run.report()
    return [run.finish() for run in runs]


class _Run:
    """One member's optimizer, schedule, average, early stopping and history. It never sees the backbone."""

    def __init__(self, member: Member) -> None:
        self.member, self.spec = member, member.spec
        everything = [*member.prompt.parameters(), *member.objective.parameters()]
        self._parameters = [parameter for parameter in everything if parameter.requires_grad]
        self._start = [parameter.detach().clone() for parameter in self._parameters]
        self._moved = [nn.Parameter(torch.zeros_like(parameter)) for parameter in self._parameters]
        self._average = _Average(self._moved, self.spec.average)
        self._optimizer = torch.optim.AdamW(self._moved, lr=self.spec.learning_rate, weight_decay=self.spec.weight_decay)
        self._batches = _batches(member.train, self.spec.batch_examples, member.generator)
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
        return self._error is None and bool(self.member.validation) and due

    def begin_step(self) -> list[Encoded]:
        """The next batch, with the parameters in place for it."""
        self._place(self._moved)
        self.member.objective.train()
        batch = next(self._batches)
        self._tokens += sum(len(e.input) + len(e.target) for e in batch)
        return batch

    def end_step(self, loss: float) -> None:
        """Move the parameters along the gradients that a pass left in them."""
        number = len(self._losses) + 1
        if not math.isfinite(loss + sum(float(p.grad.sum()) for p in self._parameters if p.grad is not None)):
            self._error = PromptmillError(f"step {number}", f"the training loss is {loss}", "Lower tune.learning_rate.")
            return
        self._rate = self.spec.learning_rate * rate_factor(number - 1, self.spec.steps, self.spec.warmup)
        self._optimizer.param_groups[0]["lr"] = self._rate
        for parameter, distance in zip(self._parameters, self._moved, strict=True):
            distance.grad, parameter.grad = parameter.grad, None
        nn.utils.clip_grad_norm_(self._moved, self.spec.clip)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._average.update(self._moved)
        self._losses.append(round(loss, 6))
        self._loss, self._validation_loss = loss, None

    def show_average(self) -> None:
        """Put the running average in place, to be looked at."""
        self._place(self._average.values)
        self.member.objective.eval()

    def look(self, loss: float) -> None:
        """Note the validation loss of the running average, and the average itself where it is the best so far."""
        self._validation_loss = loss
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
        self.member.objective.eval()
        kept_step, kept = self._best[1:] if self._best else (len(self._losses), self._average.values)
        self._place(kept)
        looks = tuple(self._looks)
        return TuningRecord(steps=len(self._losses), kept_step=kept_step, train_loss=tuple(self._losses), validation=looks)

    @torch.no_grad()
    def _place(self, moved: Sequence[Tensor]) -> None:
        for parameter, origin, distance in zip(self._parameters, self._start, moved, strict=True):
            torch.add(origin, distance, out=parameter.data)


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


def _pass_losses(backbone: Backbone, work: Sequence[tuple[_Run, Sequence[Encoded]]], budget: int, backward: bool) -> dict[_Run, float]:
    """The mean loss of each run over its examples, and with `backward` its gradients in its parameters.

    A run whose loss is not finite stays out of the passes that follow, and out of the gradients of the one it spoils.
    """
    weights = {run: sum(run.member.objective.weight(e) for e in examples) for run, examples in work}
    states = {run: _Leaves(run.member.prompt.state(), backward) for run, _ in work}
    totals = dict.fromkeys(weights, 0.0)
    items = [(run, example) for run, examples in work for example in examples]
    for packed in pack(items, lambda item: item[0].member.objective.tokens(item[1]), budget):
        parts = {run: [example for _, example in group] for run, group in groupby(packed, key=lambda item: item[0])}
        while parts := {run: part for run, part in parts.items() if math.isfinite(totals[run])}:
            trees = [Tree(states[run].state, *run.member.objective.segments(part)) for run, part in parts.items()]
            hidden = hidden_states(backbone, trees)
            losses = [run.member.objective.loss(own, part) / weights[run] for (run, part), own in zip(parts.items(), hidden, strict=True)]
            values = torch.stack(losses).tolist()
            if all(map(math.isfinite, values)):
                if backward:
                    torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
                for run, value in zip(parts, values, strict=True):
                    totals[run] += value
                break
            for run, value in zip(parts, values, strict=True):
                totals[run] += value if not math.isfinite(value) else 0.0
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
