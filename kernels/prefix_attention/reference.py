"""Dense attention over a forest, straight from the definition: slow, obvious, and what every backend is checked against."""

from __future__ import annotations

import torch
from torch import Tensor

from .forest import PromptForest


def visibility(forest: PromptForest, window: int | None = None) -> Tensor:
    """bool [S, P + S]: whether row i sees key j, the keys of the external prefixes first."""
    row = torch.arange(forest.num_tokens, device=forest.device)[:, None]
    first = torch.cat([forest.prefix_first, forest.first])
    last = torch.cat([forest.prefix_last, forest.last])
    visible = (first <= row) & (row < last)
    if window is not None:
        position = torch.cat([forest.prefix_position_ids, forest.position_ids])
        near = (forest.position_ids[:, None] - position).abs() < window
        if forest.bidirectional:
            near[:, : forest.num_prefix_tokens] = True
        visible &= near
    return visible


def dense_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    forest: PromptForest,
    prefix_k: Tensor | None = None,
    prefix_v: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """q [S, Hq, D], k and v [S, Hkv, D] -> [S, Hq, D] in ``dtype``, differentiable, O(S * (P + S)) memory."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    keys = k if prefix_k is None else torch.cat([prefix_k, k])
    values = v if prefix_v is None else torch.cat([prefix_v, v])
    group = q.shape[1] // k.shape[1]
    keys, values = (x.to(dtype).repeat_interleave(group, dim=1) for x in (keys, values))

    scores = torch.einsum("ihd,jhd->hij", q.to(dtype) * scale, keys)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    visible = visibility(forest, window)
    scores = scores.masked_fill(~visible, torch.finfo(dtype).min)
    if sinks is not None:
        sink = sinks.to(dtype)[:, None, None].expand(-1, scores.shape[1], 1)
        scores = torch.cat([scores, sink], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., : len(keys)]
    weights = weights * visible  # a row that sees nothing gives zeros
    return torch.einsum("hij,jhd->ihd", weights, values)
