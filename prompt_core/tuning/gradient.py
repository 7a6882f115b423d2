"""The gradient loop: a prompt and its objective, optimised over packed batches, the best on validation kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prompt_core.artifact import TuningRecord, Validation
from prompt_core.data.packing import pack
from prompt_core.encoding import Encoded
from prompt_core.errors import PromptmillError
from prompt_core.prompts import Prompt
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


def optimise(
    prompt: Prompt,
    objective: Objective,
    train: Sequence[Encoded],
    validation: Sequence[Encoded],
    spec: TuneSpec,
    generator: torch.Generator,
    on_step: OnStep | None = None,
) -> TuningRecord:
    """Tune `prompt` (and the objective's own parameters) in place.

    AdamW on the distance from the start, so that weight decay pulls back to the start instead of to zero. What is
    validated and kept is a running average of the parameters (Polyak & Juditsky 1992): with few examples single steps
    are noisy, and their mean generalises better.

    Args:
        prompt: starts as it is, ends as the average of the best look at the validation loss, or of the last step
            where there are no validation examples.
        train, validation: encoded examples; `validation` may be empty.
        generator: the task's random stream, on the CPU; it orders the examples.

    Raises:
        PromptmillError: the loss is not finite.
    """
    parameters = [*prompt.parameters(), *objective.parameters()]
    start = [parameter.detach().clone() for parameter in parameters]
    moved = [nn.Parameter(torch.zeros_like(parameter)) for parameter in parameters]
    average = _Average(moved, spec.average)
    optimizer = torch.optim.AdamW(moved, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    batches = _batches(train, spec.batch_examples, generator)
    losses: list[float] = []
    looks: list[Validation] = []
    best: tuple[float, int, list[Tensor]] | None = None
    tokens, began = 0, time.monotonic()
    for step in range(spec.steps):
        batch = next(batches)
        factor = rate_factor(step, spec.steps, spec.warmup)
        optimizer.param_groups[0]["lr"] = spec.learning_rate * factor
        _place(parameters, start, moved)
        loss = _accumulate(prompt, objective, batch, spec)
        if not torch.isfinite(torch.tensor(loss)):
            raise PromptmillError(f"step {step + 1}", f"the training loss is {loss}", "Lower tune.learning_rate.")
        for parameter, distance in zip(parameters, moved, strict=True):
            distance.grad, parameter.grad = parameter.grad, None
        nn.utils.clip_grad_norm_(moved, spec.clip)
        optimizer.step()
        optimizer.zero_grad()
        average.update(moved)
        losses.append(round(loss, 6))
        tokens += sum(len(e.input) + len(e.target) for e in batch)
        validation_loss = None
        last = step + 1 == spec.steps
        if validation and ((step + 1) % spec.validate_every == 0 or last):
            _place(parameters, start, average.values)
            validation_loss = mean_loss(prompt, objective, validation, spec.batch_tokens)
            looks.append(Validation(step=step + 1, loss=round(validation_loss, 6)))
            if best is None or validation_loss < best[0]:
                best = (validation_loss, step + 1, [value.clone() for value in average.values])
        if on_step:
            seconds = time.monotonic() - began
            eta = seconds / (step + 1) * (spec.steps - step - 1)
            on_step(Step(step + 1, spec.steps, loss, validation_loss, spec.learning_rate * factor, tokens / seconds, eta))
        if best and (step + 1 - best[1]) >= spec.patience * spec.validate_every:
            break
    kept_step, kept = (best[1], best[2]) if best else (len(losses), average.values)
    _place(parameters, start, kept)
    return TuningRecord(steps=len(losses), kept_step=kept_step, train_loss=tuple(losses), validation=tuple(looks))


@torch.no_grad()
def mean_loss(prompt: Prompt, objective: Objective, examples: Sequence[Encoded], batch_tokens: int) -> float:
    """The objective's mean over examples, without gradients or smoothing."""
    total = sum(float(objective.loss(prompt, batch)) for batch in pack(examples, batch_tokens))
    return total / sum(objective.weight(e) for e in examples)


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


@torch.no_grad()
def _place(parameters: Sequence[nn.Parameter], start: Sequence[Tensor], moved: Sequence[Tensor]) -> None:
    for parameter, origin, distance in zip(parameters, start, moved, strict=True):
        torch.add(origin, distance, out=parameter.data)


def _accumulate(prompt: Prompt, objective: Objective, batch: Sequence[Encoded], spec: TuneSpec) -> float:
    """Gradients of the batch's mean loss, summed over passes that fit the token budget; returns the mean loss."""
    weight = sum(objective.weight(e) for e in batch)
    total = 0.0
    for part in pack(batch, spec.batch_tokens):
        loss = objective.loss(prompt, part, spec.label_smoothing) / weight
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def _batches(examples: Sequence[Encoded], size: int, generator: torch.Generator) -> Iterator[list[Encoded]]:
    """Endless batches in a random order that is drawn anew for every pass over the examples."""
    waiting: list[int] = []
    while True:
        while len(waiting) < min(size, len(examples)):
            waiting += torch.randperm(len(examples), generator=generator).tolist()
        taken, waiting = waiting[:size], waiting[size:]
        yield [examples[i] for i in taken]
