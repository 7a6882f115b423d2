"""A frozen transformer layer with gradients written by hand: norms, rotary embedding, gated MLP and what is between.

Weights get no gradient, so a linear layer keeps none of its input, and everything that is cheap to recompute is.
Rows are [S, n] of the model's dtype; statistics are float32, float64 for a float64 model.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from prompt_core.backbone.product import Product

_aten = torch.ops.aten


class _Scratch(threading.local):
    """Memory for temporaries that lives between calls, one set per thread: on a CPU fresh pages cost as much as the arithmetic."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self._shaped: dict[tuple[str, torch.dtype], Tensor] = {}

    def like(self, name: str, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """An uninitialised tensor of x's shape; on the CPU the next one of this name and dtype overwrites it."""
        dtype = dtype or x.dtype
        if not x.is_cpu:
            return torch.empty_like(x, dtype=dtype)
        key = name, dtype
        shaped = self._shaped.get(key)
        if shaped is None or shaped.shape != x.shape:
            with torch.inference_mode(False):
                if key not in self._buffers or self._buffers[key].numel() < x.numel():
                    self._buffers[key] = torch.empty(x.numel(), dtype=dtype)
                shaped = self._shaped[key] = self._buffers[key][: x.numel()].view(x.shape)
        return shaped


_scratch = _Scratch()


class Norm:
    """RMSNorm over the last dimension, or over groups of it: x / sqrt(mean(x^2) + eps) * scale.

    Args:
        scale: [n], float32 (float64 for a float64 model).
    """

    def __init__(self, scale: Tensor, eps: float) -> None:
        self._scale, self._eps, self._width = scale, eps, scale.numel()

    def __call__(self, x: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [S, m * n] -> the normed rows, in `out` if it is given, and 1 / rms per group for `back`, [S, m, 1]."""
        wide = self._wide(x)
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = inverse.square_().div_(self._width).add_(self._eps).rsqrt_()
        out = torch.empty_like(x) if out is None else out
        normed = self._groups(out) if out.dtype == wide.dtype else wide
        torch.mul(wide, inverse, out=normed).mul_(self._scale)
        return out if out.dtype == wide.dtype else out.copy_(normed.view(x.shape)), inverse

    def back(self, grad: Tensor, x: Tensor, inverse: Tensor, residual: Tensor | None = None) -> Tensor:
        """Gradient of x, plus `residual` (the gradient that went around the norm), all [S, m * n]."""
        wide = self._wide(x)
        slope, product = (_scratch.like(name, wide) for name in ("slope", "product"))
        slope.copy_(self._groups(grad)).mul_(self._scale)
        along = torch.mul(slope, wide, out=product).sum(-1, keepdim=True).mul_(inverse**3).div_(self._width)
        out = slope if x.dtype != wide.dtype else torch.empty_like(slope)
        torch.addcmul(slope.mul_(inverse), wide, along, value=-1, out=out)
        if residual is not None:
            out.add_(product.copy_(self._groups(residual)))
        return out.to(x.dtype).view(x.shape)

    def _wide(self, x: Tensor) -> Tensor:
        groups = self._groups(x)
        return groups if x.dtype == self._scale.dtype else _scratch.like("wide", groups, self._scale.dtype).copy_(groups)

    def _groups(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1] // self._width, self._width)  # no -1: there may be no rows


class Gate(ABC):
    """An MLP's activation."""

    @abstractmethod
    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        """Activate x into `out`."""

    @abstractmethod
    def back(self, grad: Tensor, x: Tensor) -> Tensor:
        """Gradient of x, written over `grad`."""


class Silu(Gate):
    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        activated: Tensor = _aten.silu.out(x, out=out)
        return activated

    def back(self, grad: Tensor, x: Tensor) -> Tensor:
        result: Tensor = _aten.silu_backward.grad_input(grad, x, grad_input=grad)
        return result


class Gelu(Gate):
    """Args: approximate: "none" or "tanh"."""

    def __init__(self, approximate: str) -> None:
        self._approximate = approximate

    def __call__(self, x: Tensor, out: Tensor) -> Tensor:
        activated: Tensor = _aten.gelu.out(x, approximate=self._approximate, out=out)
        return activated

    def back(self, grad: Tensor, x: Tensor) -> Tensor:
        result: Tensor = _aten.gelu_backward.grad_input(grad, x, approximate=self._approximate, grad_input=grad)
        return result


GATES = (Silu(), Gelu("tanh"), Gelu("none"))


@dataclass(frozen=True)
class FrozenLayer:
    """A decoder layer: attention and a gated MLP, each with a norm before or after it, or both.

    Of the last layer of a model, only the rows that somebody looks at are completed.
    """

    query: Product
    key: Product
    value: Product
    output: Product
    gate: Product
    up: Product
    down: Product
    activation: Gate
    head_dim: int
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    before_attention: Norm | None = None
    after_attention: Norm | None = None
    before_mlp: Norm | None = None
    after_mlp: Norm | None = None
    last: bool = False

    def projected(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What attention takes. hidden [S, H], cos [S, 1, D], sin [S, 1, R <= D] -> q [S, Hq, D], k and v [S, Hkv, D]."""
        q, k, v = _Projected.apply(hidden, cos, sin, self)  # type: ignore[no-untyped-call]
        return q, k, v

    def completed(self, attended: Tensor, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """The rest of the layer. attended [S, Hq, D], hidden (the layer's input) [S, H] -> the layer's output [S, H].

        rows: those that are asked for, each once, int64 [n]; the output is theirs, [n, H].
        """
        out: Tensor = _Completed.apply(attended, hidden, rows, self)  # type: ignore[no-untyped-call]
        return out


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, cos: Tensor, sin: Tensor, layer: FrozenLayer) -> tuple[Tensor, Tensor, Tensor]:
        x, inverse = _normed(layer.before_attention, hidden, passing=True)
        q_raw, k_raw, v = layer.query(x), layer.key(x), layer.value(x)
        q, q_inverse = _normed(layer.query_norm, q_raw)
        k, k_inverse = _normed(layer.key_norm, k_raw)
        ctx.layer = layer
        ctx.save_for_backward(
            cos,
            sin,
            *_kept(layer.before_attention, hidden, inverse),
            *_kept(layer.query_norm, q_raw, q_inverse),
            *_kept(layer.key_norm, k_raw, k_inverse),
        )
        by_head = (x.shape[0], -1, layer.head_dim)
        return _rotate(q.view(by_head), cos, sin), _rotate(k.view(by_head), cos, sin), v.view(by_head)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor, None, None, None]:
        layer: FrozenLayer = ctx.layer
        cos, sin, hidden, inverse, q_raw, q_inverse, k_raw, k_inverse = ctx.saved_tensors
        q = _turned_back(dq, cos, sin).flatten(1)
        grad = layer.query.back(_norm_back(layer.query_norm, q, q_raw, q_inverse))
        k = _turned_back(dk, cos, sin).flatten(1)
        grad += layer.key.back(_norm_back(layer.key_norm, k, k_raw, k_inverse))
        grad += layer.value.back(dv.flatten(1))
        return _norm_back(layer.before_attention, grad, hidden, inverse), None, None, None


class _Completed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attended: Tensor, hidden: Tensor, rows: Tensor | None, layer: FrozenLayer) -> Tensor:
        ctx.layer, ctx.heads = layer, attended.shape
        if rows is not None:
            attended, hidden = attended[rows], hidden[rows]
        projected = layer.output(attended.flatten(1))
        middle, projected_inverse = _normed(layer.after_attention, projected)
        middle = middle.add_(hidden)
        x, inverse = _normed(layer.before_mlp, middle, passing=True)
        gate, up = layer.gate(x), layer.up(x)
        lowered = layer.down(layer.activation(gate, out=_scratch.like("activated", gate)).mul_(up))
        out, lowered_inverse = _normed(layer.after_mlp, lowered)
        ctx.save_for_backward(
            rows,
            gate,
            up,
            *_kept(layer.after_attention, projected, projected_inverse),
            *_kept(layer.before_mlp, middle, inverse),
            *_kept(layer.after_mlp, lowered, lowered_inverse),
        )
        return out.add_(middle)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        rows, *saved = ctx.saved_tensors
        attended, hidden = _completed_back(ctx.layer, grad, saved)
        if rows is not None:
            attended, hidden = (x.new_zeros(ctx.heads[0], x.shape[1]).index_copy_(0, rows, x) for x in (attended, hidden))
        return attended.view(ctx.heads), hidden, None, None


def _completed_back(layer: FrozenLayer, grad: Tensor, saved: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Gradients of what attention gave [S, Hq * D] and of the layer's input [S, H]."""
    gate, up, projected, projected_inverse, middle, inverse, lowered, lowered_inverse = saved
    product = layer.down.back(_norm_back(layer.after_mlp, grad, lowered, lowered_inverse))
    d_up = layer.activation(gate, out=_scratch.like("activated", gate)).mul_(product)
    d_gate = layer.activation.back(product.mul_(up), gate)
    x = layer.gate.back(d_gate).add_(layer.up.back(d_up))
    x = x.add_(grad) if layer.before_mlp is None else layer.before_mlp.back(x, middle, inverse, residual=grad)
    return layer.output.back(_norm_back(layer.after_attention, x, projected, projected_inverse)), x


def _normed(norm: Norm | None, x: Tensor, passing: bool = False) -> tuple[Tensor, Tensor | None]:
    """The normed rows and what `Norm.back` needs; `passing` ones are used before the next norm's."""
    if norm is None:
        return x, None
    return norm(x, _scratch.like("normed", x) if passing else None)


def _norm_back(norm: Norm | None, grad: Tensor, x: Tensor | None, inverse: Tensor | None) -> Tensor:
    return grad if norm is None or x is None or inverse is None else norm.back(grad, x, inverse)


def _kept(norm: Norm | None, x: Tensor, inverse: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """What backward needs of a norm: nothing, where there is none."""
    return (None, None) if norm is None else (x, inverse)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021, arXiv:2104.09864) in place.

    Args:
        x: [S, heads, D]; the first R of its dimensions turn, their halves (not neighbours) against each other.
        cos: [S, 1, D], one behind R.
        sin: [S, 1, R].
    """
    first, second = sin.chunk(2, -1)
    return _turn(_scratch.like("turning", x).copy_(x), cos, first, second, 1, out=x)


def _turned_back(grad: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Gradient of `_rotate`'s x: turned by the transpose."""
    first, second = sin.chunk(2, -1)
    return _turn(grad, cos, second, first, -1, out=_scratch.like("turning", grad))


def _turn(x: Tensor, cos: Tensor, first: Tensor, second: Tensor, sign: int, out: Tensor) -> Tensor:
    half = first.shape[-1]
    torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half : 2 * half], first, value=-sign)
    out[..., half : 2 * half].addcmul_(x[..., :half], second, value=sign)
    return out
