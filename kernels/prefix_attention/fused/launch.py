"""Runs the Triton kernels over a forest's plans: allocates, chooses tiles, launches. Same calls as the CPU backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ..forest import PromptForest
from .backward import delta_kernel, dkv_kernel, dq_kernel
from .configs import INTERPRETED, Config, arch_of, config
from .forward import forward_kernel
from .plan import KeyWork, QueryPlan, active_window, index_tensors, key_plan, query_plan
from .reduce import reduce_kernel


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    forest: PromptForest,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp: out [S, Hq, D] of q's dtype, lse [S, Hq] float32."""
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:2], dtype=torch.float32)
    if not len(q):
        return out, lse
    window = active_window(forest, window)
    tiling = _tiling("forward", q)
    plan = query_plan(forest, tiling.rows, tiling.keys, window)
    forward_kernel[(plan.tiles, q.shape[1])](
        q, k, v, *_prefix(prefix_k, prefix_v, k), lse if sinks is None else sinks.contiguous(), out, lse,
        *index_tensors(forest), *_lists(plan), len(q), scale, softcap or 0.0, window or 0,
        **_shape(q, k), ROWS=tiling.rows, KEYS=tiling.keys, BIDIRECTIONAL=forest.bidirectional,
        HAS_WINDOW=window is not None, HAS_CAP=softcap is not None, HAS_SINKS=sinks is not None,
        **_options(q, tiling),
    )  # fmt: skip
    return out, lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    forest: PromptForest,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v, prefix_k, prefix_v and sinks; None where `needs` says that nobody asks."""
    if not len(q):
        given = (q, k, v, prefix_k, prefix_v, sinks)
        return tuple(torch.zeros_like(x) if x is not None and need else None for x, need in zip(given, needs, strict=True))
    q, k, v, grad, out, lse = (x.contiguous() for x in (q, k, v, grad, out, lse))
    window = active_window(forest, window)
    index = index_tensors(forest)
    delta = torch.empty_like(lse)
    heads, dim = q.shape[1:]
    delta_kernel[(triton.cdiv(len(q) * heads, 64),)](out, grad, delta, len(q) * heads, D=dim, BLOCK_D=_block_dim(dim), ROWS=64, num_warps=4)

    dq = None
    if needs[0]:
        dq, tiling = torch.empty_like(q), _tiling("dq", q)
        plan = query_plan(forest, tiling.rows, tiling.keys, window)
        dq_kernel[(plan.tiles, heads)](
            q, k, v, *_prefix(prefix_k, prefix_v, k), grad, lse, delta, dq,
            *index, *_lists(plan), len(q), scale, softcap or 0.0, window or 0,
            **_shape(q, k), ROWS=tiling.rows, KEYS=tiling.keys, BIDIRECTIONAL=forest.bidirectional,
            HAS_WINDOW=window is not None, HAS_CAP=softcap is not None, **_options(q, tiling),
        )  # fmt: skip

    tiling = _tiling("dkv", q)
    works = key_plan(forest, tiling.rows, tiling.keys, window) if any(needs[1:5]) else None
    saved = (q, grad, lse, delta, index, scale, window, softcap, tiling)
    dk = dv = prefix_dk = prefix_dv = None
    if works is not None and (needs[1] or needs[2]):
        dk, dv = _key_gradients(works.tokens, k, v, *saved, prefix=False)
    if works is not None and (needs[3] or needs[4]) and prefix_k is not None and prefix_v is not None:
        exempt = (*saved[:6], None if forest.bidirectional else window, *saved[7:])
        prefix_dk, prefix_dv = _key_gradients(works.prefixes, prefix_k.contiguous(), prefix_v.contiguous(), *exempt, prefix=True)
    dsinks = None
    if sinks is not None and needs[5]:
        dsinks = -(delta * (sinks.float() - lse).exp()).sum(0).to(sinks.dtype)
    grads = (dq, dk, dv, prefix_dk, prefix_dv, dsinks)
    return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))


def _key_gradients(
    keys: KeyWork,
    k: Tensor,
    v: Tensor,
    q: Tensor,
    grad: Tensor,
    lse: Tensor,
    delta: Tensor,
    index: tuple[Tensor, Tensor, Tensor],
    scale: float,
    window: int | None,
    softcap: float | None,
    tiling: Config,
    *,
    prefix: bool,
) -> tuple[Tensor, Tensor]:
    """dk and dv of token keys or of prefix keys: the work list, then the sum of split blocks."""
    dk, dv = torch.empty_like(k), torch.empty_like(v)
    if not keys.items:
        return dk, dv
    kv_heads, dim = k.shape[1:]
    partial = q.new_empty((2, max(keys.slots, 1), kv_heads, tiling.keys, dim), dtype=torch.float32)
    dkv_kernel[(keys.items, kv_heads)](
        q, k, v, grad, lse, delta, dk, dv, *partial, *index, keys.work, len(q), scale, softcap or 0.0, window or 0,
        **_shape(q, k), ROWS=tiling.rows, KEYS=tiling.keys, PREFIX=prefix,
        HAS_WINDOW=window is not None, HAS_CAP=softcap is not None, **_options(q, tiling),
    )  # fmt: skip
    if len(keys.split):
        reduce_kernel[(len(keys.split), kv_heads, tiling.keys // 16)](
            *partial, dk, dv, keys.split,
            KV_HEADS=kv_heads, D=dim, BLOCK_D=_block_dim(dim), KEYS=tiling.keys, PART=16, num_warps=4,
        )  # fmt: skip
    return dk, dv


def _tiling(kernel: str, q: Tensor) -> Config:
    return config(arch_of(q.device), kernel, q.element_size(), q.shape[-1])


def _prefix(prefix_k: Tensor | None, prefix_v: Tensor | None, k: Tensor) -> tuple[Tensor, Tensor]:
    """The prefixes' tensors; without one the kernels visit no prefix block and any pointer does."""
    return (k, k) if prefix_k is None or prefix_v is None else (prefix_k.contiguous(), prefix_v.contiguous())


def _lists(plan: QueryPlan) -> tuple[Tensor, ...]:
    begins = (plan.prefix_begin, plan.full_begin, plan.masked_begin)
    return (plan.tile_order, *begins, plan.prefix_visits, plan.full_visits, plan.masked_visits, plan.prefix_blocks)


def _shape(q: Tensor, k: Tensor) -> dict[str, int]:
    return {"HEADS": q.shape[1], "KV_HEADS": k.shape[1], "D": q.shape[2], "BLOCK_D": _block_dim(q.shape[2])}


def _block_dim(dim: int) -> int:
    return max(16, int(triton.next_power_of_2(dim)))


def _options(q: Tensor, tiling: Config) -> dict[str, Any]:
    upcast = arch_of(q.device) == INTERPRETED and q.dtype == torch.bfloat16
    return {"UPCAST": upcast, "num_warps": tiling.warps, "num_stages": tiling.stages, "enable_fp_fusion": True}
