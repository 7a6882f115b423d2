"""Distillation: the divergence of a prompt's next-token distributions from those of a teacher that reads a long context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.backbone.product import Product
from prompt_core.encoded import Encoded, Taught
from prompt_core.tuning.objective import Generation

_ROWS = 512  # of one product with the vocabulary
_CACHED = 16  # rows of logits, float32, that stay in the cache while the softmax passes over them


class Distillation(Generation):
    """KL divergence of the teacher's next-token distribution from the prompt's, over its k likeliest tokens and the lumped rest.

    The distributions at every position of the answer say more than its words: Hinton et al. 2015 (arXiv:1503.02531); with
    a prefix as the student, Eyuboglu et al. 2025 (arXiv:2506.06266).
    """

    def loss(self, states: Tensor, examples: Sequence[Encoded]) -> Tensor:
        losses, _ = self.divergences(states, examples)
        return losses.sum()

    def divergences(self, states: Tensor, examples: Sequence[Encoded]) -> tuple[Tensor, Tensor]:
        """For every answer token of the examples in order: nats float32 [m], and the token that the prompt ranks first, int64 [m]."""
        taught = [example for example in examples if isinstance(example, Taught)]
        ids, chances, rest = (torch.cat([getattr(e, part) for e in taught]).to(states.device) for part in ("ids", "chances", "rest"))
        return teacher_divergences(self._backbone, states, ids.long(), chances, rest)


def teacher_divergences(backbone: Backbone, states: Tensor, ids: Tensor, chances: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """KL(teacher || model) per row through a frozen head, over k tokens and all others lumped into one.

    As in `likelihood.next_token_losses` the gradient of the states is finished in the forward pass, block by block: the
    logits of all rows never exist together.

    Args:
        backbone: a model that generates; its head and softcap.
        states: last hidden states, [n, H].
        ids: k different tokens per row, int64 [n, k].
        chances: their log-probabilities under the teacher, float32 [n, k].
        rest: the teacher's log-probability of all others together, float32 [n]; -inf for none.

    Returns:
        The divergence in nats, float32 [n], and the model's most likely token, int64 [n], without gradient.
    """
    losses, first = _Divergences.apply(  # type: ignore[no-untyped-call]
        states, backbone.head, backbone.logit_cap, ids, chances, rest
    )
    return losses, first


class _Divergences(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, head: Product, cap: float | None, ids: Tensor, chances: Tensor, rest: Tensor
    ) -> tuple[Tensor, Tensor]:
        losses = torch.empty(len(states), device=states.device)
        first = torch.empty(len(states), dtype=torch.int64, device=states.device)
        gradient = torch.empty_like(states) if states.requires_grad else None
        for start in range(0, len(states), _ROWS):
            logits = head(states[start : start + _ROWS])
            for top in range(0, len(logits), _CACHED):
                at = slice(start + top, start + min(top + _CACHED, len(logits)))
                block = logits[top : top + _CACHED].float()
                if cap is not None:
                    block = block.div_(cap).tanh_().mul_(cap)
                slope = None if cap is None or gradient is None else 1 - (block / cap).square()
                losses[at], first[at] = _divergence(block, ids[at], chances[at], rest[at], gradient is not None)
                if gradient is not None:
                    logits[top : top + _CACHED] = block if slope is None else block.mul_(slope)
            if gradient is not None:
                gradient[start : start + _ROWS] = head.back(logits)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(first)
        return losses, first

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return (gradient.float() * grad[:, None]).to(gradient.dtype), None, None, None, None, None


def _divergence(logits: Tensor, ids: Tensor, chances: Tensor, rest: Tensor, slopes: bool) -> tuple[Tensor, Tensor]:
    """Divergence and first token of rows of logits [b, V], which with `slopes` become their own gradient."""
    largest, first = logits.max(-1, keepdim=True)
    chosen = logits.gather(1, ids) - largest
    # The others' mass is summed on its own: 1 minus the mass of k tokens is mostly rounding where these are nearly all.
    others = logits.sub_(largest).exp_().scatter_(1, ids, 0.0)
    tail = others.sum(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)
    total = tail + chosen.exp().sum(-1, keepdim=True)
    wanted, lumped = chances.exp(), rest.exp()[:, None]
    inside = wanted * (chances - chosen + total.log())
    outside = torch.where(lumped > 0, lumped * (rest[:, None] - tail.log() + total.log()), 0.0)
    if slopes:
        others.mul_(1 / total - lumped / tail).scatter_(1, ids, chosen.exp() / total - wanted)
    return inside.sum(-1) + outside[:, 0], first[:, 0]
