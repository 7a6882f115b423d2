"""Who takes part in a fleet: what is tuned, on which examples, with which settings, and who follows it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from prompt_core.backbone import Backbone
from prompt_core.encoded import Encoded
from prompt_core.methods import TuneSpec
from prompt_core.prompts import Prompt
from prompt_core.tuning.objective import Objective

Module = TypeVar("Module", bound=nn.Module)


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
        tokens: example tokens trained so far, those of steps that were taken back and of before an interruption too.
    """

    number: int
    steps: int
    loss: float
    validation_loss: float | None
    learning_rate: float
    tokens_per_second: float
    eta_seconds: float
    tokens: int = 0


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


def twin(module: Module, backbone: Backbone) -> Module:
    """A copy with parameters of its own, on the same backbone."""
    return copy.deepcopy(module, {id(backbone): backbone})
