"""The attention step as a torch.library operator: shapes for the compiler, gradients for autograd, a backend to run it.

An operator takes tensors and numbers only. A forest travels as its `layout`, one int64 tensor on the host that describes
it completely; the living forest, with what was planned for it, is found again through the handle in that tensor.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import cpu
from .forest import forest_of


def triton_complaint(q: Tensor) -> str | None:
    """Why the Triton kernels cannot take q, and what to do; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton, or leave backend out"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if q.device.type != "cuda" and not interpreted:
        return f"q is on {q.device}: move the tensors to a CUDA or ROCm GPU, or leave backend out"
    if q.dtype == torch.float64:
        return "q has dtype torch.float64: use float32, float16 or bfloat16, or backend='reference'"
    if not 16 <= q.shape[-1] <= 256 and not interpreted:
        return f"q has head dimension {q.shape[-1]}: use 16 to 256, or backend='reference'"
    return None


def _backend(name: str) -> ModuleType:
    """The module that computes; Triton is imported when it is used."""
    return cpu if name == "cpu" else importlib.import_module(".fused", __package__)


@torch.library.custom_op("prefix_attention::attention", mutates_args=())
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Tensor,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    backend: str,
    kept: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """out [S, Hq, D] of q's dtype, lse [S, Hq], float32 (float64 for float64), and what backward need not compute again.

    Arguments as in `prefix_attention`. kept: `cpu.weights_to_keep`, or 0: softmax weights, in an order that only the
    backend knows.
    """
    forest = forest_of(layout, q.device)
    weights = q.new_empty(kept, dtype=cpu.dtypes(q)[0])
    own = (weights,) if kept else ()
    out, lse = _backend(backend).forward(q, k, v, forest, prefix_k, prefix_v, scale, window, softcap, sinks, *own)
    return out, lse, weights


@attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: Tensor,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    backend: str,
    kept: int,
) -> tuple[Tensor, Tensor, Tensor]:
    narrow, wide = cpu.dtypes(q)
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=wide), q.new_empty(kept, dtype=narrow)


@torch.library.custom_op("prefix_attention::attention_backward", mutates_args=())
def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    weights: Tensor,
    layout: Tensor,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    backend: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients of q, k, v, prefix_k, prefix_v, sinks; an empty tensor where `needs` is False."""
    forest = forest_of(layout, q.device)
    own = (weights,) if len(weights) else ()
    grads = _backend(backend).backward(grad, q, k, v, out, lse, forest, prefix_k, prefix_v, scale, window, softcap, sinks, needs, *own)
    return [q.new_empty(0) if grad is None else grad for grad in grads]


@attention_backward.register_fake
def _(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    weights: Tensor,
    layout: Tensor,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    backend: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    inputs = (q, k, v, prefix_k, prefix_v, sinks)
    return [x.new_empty(x.shape) if needed and x is not None else q.new_empty(0) for x, needed in zip(inputs, needs, strict=True)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v, layout, prefix_k, prefix_v, sinks, *ctx.options, _ = inputs
    out, lse, weights = output
    ctx.mark_non_differentiable(lse, weights)
    ctx.save_for_backward(q, k, v, out, lse, weights, layout, prefix_k, prefix_v, sinks)


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    wanted = ctx.needs_input_grad
    needs = [*wanted[:3], *wanted[4:7]]
    grads = attention_backward(grad, *ctx.saved_tensors, *ctx.options, needs)
    q, k, v, prefix_k, prefix_v, sinks = (g if need else None for g, need in zip(grads, needs, strict=True))
    return q, k, v, None, prefix_k, prefix_v, sinks, None, None, None, None, None


attention.register_autograd(_backward, setup_context=_save)
