"""Losses over a batch as a whole, and how they are exact where the batch takes several passes or processes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.data.packing import pack
from prompt_core.encoded import Encoded
from prompt_core.prompts import PromptState, Tree, hidden_states
from prompt_core.tuning.objective import Objective
from prompt_core.tuning.parallel import add_up, share


class Joint(Objective):
    """Base of the objectives whose loss compares the examples of a batch with each other."""

    @abstractmethod
    def outputs(self, states: Tensor, examples: Sequence[Encoded]) -> Tensor:
        """What the loss compares: a row per example, float32 [examples, H], of its segments' last hidden states."""

    @abstractmethod
    def joint_loss(self, outputs: Tensor, examples: Sequence[Encoded]) -> Tensor:
        """Mean loss of a batch times its number of examples, a float32 scalar."""


@dataclass(frozen=True, eq=False)
class Cached:
    """A batch's loss and what it would hand back to each example's output.

    Attributes:
        loss: `Joint.joint_loss` of the batch.
        gradients: of that loss in the outputs, [examples, H]; empty where none were asked for.
        own: what the objective trains beside the prompt, each with that loss's gradient in it.
    """

    loss: float
    gradients: Tensor
    own: Sequence[tuple[Tensor, Tensor]] = ()

    def stand_in(self, outputs: Tensor, numbers: Sequence[int]) -> Tensor:
        """A scalar over some of the batch's examples whose gradient is that of the whole batch's loss."""
        value = (outputs * self.gradients[list(numbers)]).sum()
        if 0 in numbers:  # in one pass of one process
            value = value + sum((parameter * gradient).sum() for parameter, gradient in self.own)
        return value


def is_divided(objective: Objective, examples: Sequence[Encoded], budget: int) -> bool:
    """Whether a batch has to be seen as a whole and does not come into one pass of one process."""
    return isinstance(objective, Joint) and (dist.is_initialized() or sum(map(objective.tokens, examples)) > budget)


def look_ahead(
    backbone: Backbone, objective: Joint, prompt: PromptState, examples: Sequence[Encoded], budget: int, backward: bool
) -> Cached:
    """The loss of a divided batch and its gradients in the outputs, by passes that keep nothing for a backward pass.

    Passes with gradients then take `stand_in`: gradient caching (Gao et al. 2021, arXiv:2101.06983), the same gradients
    as those of one large pass for one forward pass more. In a torch.distributed group each process computes the outputs
    of its share, and all have the loss of the whole.
    """
    outputs = torch.zeros(len(examples), backbone.hidden_size, device=backbone.device)
    with torch.no_grad():
        for numbers in pack(share(range(len(examples))), lambda number: objective.tokens(examples[number]), budget):
            batch = [examples[number] for number in numbers]
            (states,) = hidden_states(backbone, [Tree(prompt, *objective.segments(batch))])
            outputs[numbers] = objective.outputs(states, batch)
    add_up([outputs])
    if not backward:
        return Cached(float(objective.joint_loss(outputs, examples)), outputs[:0])
    with torch.enable_grad():
        loss = objective.joint_loss(outputs.requires_grad_(), examples)
        trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
        gradients, *own = torch.autograd.grad(loss, [outputs, *trained])
    return Cached(float(loss.detach()), gradients, list(zip(trained, own, strict=True)))
