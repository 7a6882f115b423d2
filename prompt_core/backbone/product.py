"""Matrix products with frozen weights, in the fastest way that this processor has."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_MAX_PACKED_BYTES = 2 << 30  # of all packed copies of a model; beyond it memory matters more than the last tenth of speed


class Product:
    """x W^T + b of a frozen weight, and the way back through it.

    On the CPU it goes through oneDNN, whose float32 products are faster than the default library's on some processors
    (AMD: a tenth). `pack` stores copies in the layout that oneDNN computes in: bfloat16 both ways, float32 forward.

    Args:
        weight: [out, in], a view is fine.
        bias: [out] or None.

    Attributes:
        weight: as given.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, pack: bool = False) -> None:
        self.weight, self._bias = weight, bias
        self._onednn = _onednn_computes(weight.device.type, weight.dtype)
        self._forward_weight, self._back_weight = weight, weight.t()
        if self._onednn and pack:
            self._forward_weight = _packed(weight)
            if weight.dtype == torch.bfloat16:
                self._back_weight = _packed(weight.t().contiguous())

    def __call__(self, x: Tensor) -> Tensor:
        """x [S, in] -> [S, out]."""
        return self._linear(x, self._forward_weight, self._bias)

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
