"""One decoding step of many rows behind one shared prefix. Inference only."""

from __future__ import annotations

import torch
from torch import Tensor


def decode_attention(
    q: Tensor,
    cache_k: Tensor,
    cache_v: Tensor,
    lengths: Tensor,
    prefix_k: Tensor | None = None,
    prefix_v: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of one new query per row against the row's own cache and one prefix that all rows share.

    The prefix's product is computed once over all rows (Juravsky et al. 2024, Hydragen), the caches' in one batch.

    q: [B, Hq, D]. cache_k, cache_v: [B, Hkv, C, D]; row b uses its first lengths[b] slots, the new token's own key
    among them, so its path position is P + lengths[b] - 1. lengths: int64 [B]. prefix_k, prefix_v: [P, Hkv, D] or None.
    scale, window, softcap, sinks: as in `prefix_attention`. Returns [B, Hq, D] in the dtype of q, zeros in a row that
    sees no key. Raises ValueError, naming the argument, if shapes do not fit.
    """
    _check(q, cache_k, cache_v, lengths, prefix_k, prefix_v, sinks)
    batch, heads, dim = q.shape
    kv_heads, slots = cache_k.shape[1:3]
    group = heads // kv_heads
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    scale = dim**-0.5 if scale is None else scale

    slot = torch.arange(slots, device=q.device)
    visible = slot < lengths[:, None]
    if window is not None:
        visible &= slot >= lengths[:, None] - window
    by_row = q.reshape(batch * kv_heads, group, dim)
    parts = [torch.bmm(by_row, cache_k.reshape(batch * kv_heads, slots, dim).transpose(1, 2)).view(batch, heads, slots)]
    masks = [visible]
    prefix = 0 if prefix_k is None else len(prefix_k)
    if prefix_k is not None and prefix:
        by_head = q.view(batch, kv_heads, group, dim).transpose(0, 1).reshape(kv_heads, batch * group, dim)
        shared = torch.bmm(by_head, prefix_k.permute(1, 2, 0)).view(kv_heads, batch, group, prefix)
        parts.insert(0, shared.transpose(0, 1).reshape(batch, heads, prefix))
        distance = prefix + lengths[:, None] - 1 - torch.arange(prefix, device=q.device)
        masks.insert(0, torch.ones_like(distance, dtype=torch.bool) if window is None else distance < window)

    scores = torch.cat(parts, dim=-1).to(wide).mul_(scale)
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    hidden = ~torch.cat(masks, dim=-1)[:, None]
    scores.masked_fill_(hidden, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(wide)[None, :, None].expand(batch, -1, 1)], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., : prefix + slots]
    weights = weights.masked_fill(hidden, 0).to(q.dtype)  # a row that sees nothing is not a number until here

    out = torch.bmm(weights[..., prefix:].reshape(batch * kv_heads, group, slots), cache_v.reshape(batch * kv_heads, slots, dim)).view(
        batch, heads, dim
    )
    if prefix_v is not None and prefix:
        shared = weights[..., :prefix].reshape(batch, kv_heads, group, prefix).transpose(0, 1)
        shared = torch.bmm(shared.reshape(kv_heads, batch * group, prefix), prefix_v.transpose(0, 1))
        out = out + shared.view(kv_heads, batch, group, dim).transpose(0, 1).reshape(batch, heads, dim)
    return out


def _check(
    q: Tensor,
    cache_k: Tensor,
    cache_v: Tensor,
    lengths: Tensor,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    sinks: Tensor | None,
) -> None:
    if q.ndim != 3:
        raise ValueError(f"q has shape {list(q.shape)}: needed is [B, Hq, D]")
    batch, heads, dim = q.shape
    if cache_k.ndim != 4 or cache_k.shape[0] != batch or cache_k.shape[3] != dim:
        raise ValueError(f"cache_k has shape {list(cache_k.shape)}: needed is [{batch}, Hkv, C, {dim}]")
    kv_heads = cache_k.shape[1]
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"q has {heads} heads and cache_k has {kv_heads}: the first must be a multiple of the second")
    if (prefix_k is None) != (prefix_v is None):
        raise ValueError("prefix_k and prefix_v must be given together or not at all")
    prefix = 0 if prefix_k is None else len(prefix_k)
    expected = {
        "cache_v": (cache_v, list(cache_k.shape)),
        "lengths": (lengths, [batch]),
        "prefix_k": (prefix_k, [prefix, kv_heads, dim]),
        "prefix_v": (prefix_v, [prefix, kv_heads, dim]),
        "sinks": (sinks, [heads]),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and list(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}: needed is {shape}")
