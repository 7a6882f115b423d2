"""The pieces of a frozen transformer layer with gradients written by hand: products, norms, rotary embedding, gated MLP.

Weights get no gradient, so a linear layer keeps none of its input, and everything that is cheap to recompute is.
Rows are [S, n] of the model's dtype; statistics are float32, float64 for a float64 model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_aten = torch.ops.aten
_MAX_PACKED_BYTES = 2 << 30  # of all packed copies of a model; beyond it memory matters more than the last tenth of speed


class Product:
    """x W^T + b of a frozen weight, and the way back through it.

    On the CPU it goes through oneDNN, whose float32 products are faster than the default library's on some processors
    (AMD: a tenth). `pack` stores copies in the layout that oneDNN computes in: bfloat16 both ways, float32 forward.

    Args:
        weight: [out, in], a view is fine.
        bias: [out] or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, pack: bool = False) -> None:
        self._bias = bias
        self._onednn = _onednn_computes(weight.device.type, weight.dtype)
        self._weight, self._back_weight = weight, weight.t()
        if self._onednn and pack:
            self._weight = _packed(weight)
            if weight.dtype == torch.bfloat16:
                self._back_weight = _packed(weight.t().contiguous())

    def __call__(self, x: Tensor) -> Tensor:
        """x [S, in] -> [S, out]."""
        return self._linear(x, self._weight, self._bias)

    def back(self, grad: Tensor) -> Tensor:
        """Gradient of the output [S, out] -> gradient of the input [S, in]."""
        return self._linear(grad, self._back_weight, None)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _onednn_linear(x.contiguous(), weight, bias) if self._onednn else F.linear(x, weight, bias)


def packs(weights: list[Tensor]) -> bool:
    """Whether packed copies of these weights are worth their memory."""
    copies = sum(w.numel() * w.element_size() * (2 if w.dtype == torch.bfloat16 else 1) for w in weights)
    return copies <= _MAX_PACKED_BYTES


def _packed(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, 1024)
    return packed


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


@lru_cache
def _onednn_computes(device: str, dtype: torch.dtype) -> bool:
    """Whether this torch offers oneDNN products of the dtype on this processor, and they are right."""
    if device != "cpu" or dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    x, weight = (torch.linspace(-1, 1, n * 96, dtype=dtype).sin().view(n, 96) for n in (40, 64))
    expected = x.double() @ weight.double().T
    try:
        results = [_onednn_linear(x, w, None) for w in (weight, weight.t().contiguous().t(), _packed(weight))]
    except (RuntimeError, AttributeError):  # a torch built without it, or one that renamed these operators
        return False
    return all(bool((result - expected).norm() < 1e-2 * expected.norm()) for result in results)


class Norm:
    """RMSNorm over the last dimension, or over groups of it: x / sqrt(mean(x^2) + eps) * scale.

    Args:
        scale: [n], float32 (float64 for a float64 model).
    """

    def __init__(self, scale: Tensor, eps: float) -> None:
        self._scale, self._eps = scale, eps

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [S, m * n] -> the normed rows, and 1 / rms per group for `back`, [S, m, 1]."""
        wide = self._groups(x).to(self._scale.dtype)
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = inverse.square_().div_(wide.shape[-1]).add_(self._eps).rsqrt_()
        normed = (wide * inverse).mul_(self._scale)
        return normed.to(x.dtype).view(x.shape), inverse

    def back(self, grad: Tensor, x: Tensor, inverse: Tensor, residual: Tensor | None = None) -> Tensor:
        """Gradient of x, plus `residual` (the gradient that went around the norm), all [S, m * n]."""
        wide = self._groups(x).to(self._scale.dtype)
        slope = self._groups(grad) * self._scale
        along = torch.linalg.vecdot(slope, wide).unsqueeze(-1).mul_(inverse**3).div_(wide.shape[-1])
        slope.mul_(inverse).addcmul_(wide, along, value=-1)
        if residual is not None:
            slope.add_(self._groups(residual))
        return slope.to(x.dtype).view(x.shape)

    def _groups(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, len(self._scale))


@dataclass(frozen=True)
class Gate:
    """An MLP's activation. `forward(x)` and `back(grad, x, out)`, which may write over grad."""

    forward: Callable[[Tensor], Tensor]
    back: Callable[..., Tensor]


def _gelu(approximate: str) -> Gate:
    def back(grad: Tensor, x: Tensor) -> Tensor:
        result: Tensor = _aten.gelu_backward.grad_input(grad, x, approximate=approximate, grad_input=grad)
        return result

    return Gate(lambda x: F.gelu(x, approximate=approximate), back)


def _silu_back(grad: Tensor, x: Tensor) -> Tensor:
    result: Tensor = _aten.silu_backward.grad_input(grad, x, grad_input=grad)
    return result


GATES = (Gate(F.silu, _silu_back), _gelu("tanh"), _gelu("none"))


@dataclass(frozen=True)
class FrozenLayer:
    """A decoder layer: attention and a gated MLP, each with a norm before or after it, or both."""

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

    def projected(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What attention takes. hidden [S, H], cos [S, 1, D], sin [S, 1, R <= D] -> q [S, Hq, D], k and v [S, Hkv, D]."""
        q, k, v = _Projected.apply(hidden, cos, sin, self)  # type: ignore[no-untyped-call]
        return q, k, v

    def completed(self, attended: Tensor, hidden: Tensor) -> Tensor:
        """The rest of the layer. attended [S, Hq, D], hidden (the layer's input) [S, H] -> the layer's output [S, H]."""
        out: Tensor = _Completed.apply(attended, hidden, self)  # type: ignore[no-untyped-call]
        return out


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, cos: Tensor, sin: Tensor, layer: FrozenLayer) -> tuple[Tensor, Tensor, Tensor]:
        x, inverse = _normed(layer.before_attention, hidden)
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
        by_head = (len(x), -1, layer.head_dim)
        return _rotated(q.view(by_head), cos, sin), _rotated(k.view(by_head), cos, sin), v.view(by_head)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor, None, None, None]:
        layer: FrozenLayer = ctx.layer
        cos, sin, hidden, inverse, q_raw, q_inverse, k_raw, k_inverse = ctx.saved_tensors
        q = _rotated(dq, cos, sin, back=True).flatten(1)
        k = _rotated(dk, cos, sin, back=True).flatten(1)
        grad = layer.query.back(_norm_back(layer.query_norm, q, q_raw, q_inverse))
        grad += layer.key.back(_norm_back(layer.key_norm, k, k_raw, k_inverse))
        grad += layer.value.back(dv.flatten(1))
        return _norm_back(layer.before_attention, grad, hidden, inverse), None, None, None


class _Completed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, attended: Tensor, hidden: Tensor, layer: FrozenLayer) -> Tensor:
        projected = layer.output(attended.flatten(1))
        middle, projected_inverse = _normed(layer.after_attention, projected)
        middle = middle.add_(hidden)
        x, inverse = _normed(layer.before_mlp, middle)
        gate, up = layer.gate(x), layer.up(x)
        lowered = layer.down(layer.activation.forward(gate).mul_(up))
        out, lowered_inverse = _normed(layer.after_mlp, lowered)
        ctx.layer, ctx.heads = layer, attended.shape
        ctx.save_for_backward(
            gate,
            up,
            *_kept(layer.after_attention, projected, projected_inverse),
            *_kept(layer.before_mlp, middle, inverse),
            *_kept(layer.after_mlp, lowered, lowered_inverse),
        )
        return out.add_(middle)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        layer: FrozenLayer = ctx.layer
        gate, up, projected, projected_inverse, middle, inverse, lowered, lowered_inverse = ctx.saved_tensors
        product = layer.down.back(_norm_back(layer.after_mlp, grad, lowered, lowered_inverse))
        d_up = layer.activation.forward(gate).mul_(product)
        d_gate = layer.activation.back(product.mul_(up), gate)
        x = layer.gate.back(d_gate).add_(layer.up.back(d_up))
        x = x.add_(grad) if layer.before_mlp is None else layer.before_mlp.back(x, middle, inverse, residual=grad)
        attended = layer.output.back(_norm_back(layer.after_attention, x, projected, projected_inverse))
        return attended.view(ctx.heads), x, None


def _normed(norm: Norm | None, x: Tensor) -> tuple[Tensor, Tensor | None]:
    return (x, None) if norm is None else norm(x)


def _norm_back(norm: Norm | None, grad: Tensor, x: Tensor | None, inverse: Tensor | None) -> Tensor:
    return grad if norm is None or x is None or inverse is None else norm.back(grad, x, inverse)


def _kept(norm: Norm | None, x: Tensor, inverse: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """What backward needs of a norm: nothing, where there is none."""
    return (None, None) if norm is None else (x, inverse)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, back: bool = False) -> Tensor:
    """Rotary embedding (Su et al. 2021, arXiv:2104.09864) of the halves (not pairs) of the first R of D dimensions.

    Args:
        x: [S, heads, D].
        cos: [S, 1, D], one behind R.
        sin: [S, 1, R].
        back: turn by the transpose, for gradients.
    """
    rotary = sin.shape[-1]
    half = rotary // 2
    first, second = sin[..., :half], sin[..., half:]
    if back:
        first, second = second, first
    out = x * cos
    out[..., :half].addcmul_(x[..., half:rotary], first, value=1 if back else -1)
    out[..., half:rotary].addcmul_(x[..., :half], second, value=-1 if back else 1)
    return out
