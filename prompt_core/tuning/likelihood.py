"""Log-likelihood of next tokens through a frozen head, without ever holding the logits of all rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.backbone.product import Product

_ROWS = 512  # of one product with the vocabulary
_CACHED = 16  # rows of logits, float32, that stay in the cache while the softmax passes over them


def next_token_losses(backbone: Backbone, states: Tensor, row_of: Tensor | None, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of target tokens, each given a row of hidden states.

    The head is frozen, so the only gradient is that of the states, and it is finished in the forward pass while a
    block's logits are at hand: a forward and a backward product with the vocabulary, and memory for one block of rows
    (Hsu et al. 2024, arXiv:2410.10989, do so for a trained head).

    Args:
        backbone: a model that generates; its head and softcap.
        states: last hidden states, [n, H].
        row_of: the row that predicts each target, int64 [m]; a row may predict several. None: each row predicts one, in
            order; then a GPU is never waited for.
        targets: token ids, int64 [m].
        smoothing: share of the target distribution that is spread over the vocabulary.

    Returns:
        -log p(target | row) under the smoothed target, float32 [m].
    """
    losses: Tensor = _NextTokenLosses.apply(  # type: ignore[no-untyped-call]
        states, backbone.head, backbone.logit_cap, row_of, targets, smoothing
    )
    return losses


class _NextTokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, head: Product, cap: float | None, row_of: Tensor | None, targets: Tensor, smoothing: float
    ) -> Tensor:
        cached = _CACHED if states.is_cpu else _ROWS  # a GPU wants few large kernels
        tops = torch.arange(0, len(states) + cached, cached)
        if row_of is None:
            order = row_of = torch.arange(len(states), device=states.device)
            bounds = tops.clamp(max=len(states)).tolist()
        else:
            order = row_of.argsort(stable=True)
            bounds = torch.searchsorted(row_of[order], tops.to(row_of.device)).tolist()
        losses = torch.empty(len(targets), device=states.device)
        slopes = torch.empty(len(targets), device=states.device)
        common = torch.empty_like(states) if states.requires_grad else None  # each row's gradient but for its targets' part
        for start in range(0, len(states), _ROWS):
            logits = head(states[start : start + _ROWS])
            for top in range(0, len(logits), cached):
                block = logits[top : top + cached].float()
                if cap is not None:
                    block = block.div_(cap).tanh_().mul_(cap)
                at = order[slice(*bounds[(start + top) // cached :][:2])]
                row, target = row_of[at] - (start + top), targets[at]
                total = block.logsumexp(-1)
                chosen = block[row, target]
                losses[at] = total[row] - (1 - smoothing) * chosen
                if smoothing:
                    losses[at] -= smoothing * block.mean(-1)[row]
                slopes[at] = 1.0 if cap is None else 1 - (chosen / cap).square()
                if common is not None:
                    slope = None if cap is None else 1 - (block / cap).square()
                    chances = block.sub_(total[:, None]).exp_()
                    if smoothing:
                        chances -= smoothing / chances.shape[-1]
                    logits[top : top + cached] = chances if slope is None else chances.mul_(slope)
            if common is not None:
                common[start : start + _ROWS] = head.back(logits)
        ctx.head = head
        ctx.save_for_backward(common, row_of, targets, slopes.mul_(1 - smoothing))
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        common, row_of, targets, slopes = ctx.saved_tensors
        per_row = torch.zeros(len(common), device=grad.device).index_add_(0, row_of, grad)
        total = common.float() * per_row[:, None]
        total.index_add_(0, row_of, ctx.head.weight[targets].float() * (grad * slopes)[:, None], alpha=-1)
        return total.to(common.dtype), None, None, None, None, None
