"""Matrix products with frozen weights, in the fastest way that this processor has."""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_MAX_PACKED_BYTES = 2 << 30  # of all packed copies of a model; beyond it memory matters more than the last tenth of speed


class Product:
    """x W^T + b of a frozen weight, and the way back through it.

    On the CPU it goes through oneDNN, whose float32 products are faster than the default library's on some processors
    (AMD: a tenth; of few rows and a vocabulary, half the time). `pack` stores copies in the layout that oneDNN computes in:
    float32 forward, bfloat16 both ways, the one for the way back when it is first gone.

    Args:
        weight: [out, in], a view is fine.
        bias: [out] or None.

    Attributes:
        weight: as given.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, pack: bool = False) -> None:
        self.weight, self._bias = weight, bias
        self._onednn = _onednn_computes(weight.device.type, weight.dtype)
        self._pack = pack and self._onednn
        self._forward_weight = _packed(weight) if self._pack else weight

    def __call__(self, x: Tensor) -> Tensor:
        """x [S, in] -> [S, out]."""
        if torch.is_grad_enabled() and x.requires_grad:
            product: Tensor = _Differentiable.apply(x, self)  # type: ignore[no-untyped-call]
            return product
        return self._linear(x, self._forward_weight, self._bias)

    def back(self, grad: Tensor) -> Tensor:
        """Gradient of the output [S, out] -> gradient of the input [S, in]."""
        return self._linear(grad, self._back_weight, None)

    @cached_property
    def _back_weight(self) -> Tensor:
        transposed = self.weight.t()
        return _packed(transposed.contiguous()) if self._pack and transposed.dtype == torch.bfloat16 else transposed

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _onednn_linear(x.contiguous(), weight, bias) if self._onednn else F.linear(x, weight, bias)


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, product: Product) -> Tensor:
        ctx.product = product
        return product(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.product.back(grad), None


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
