"""Buffers of the CPU backend that live between calls: fresh pages for the temporaries would cost more than the products."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor


class Scratch(threading.local):
    """Named buffers, one set per thread, as large as the largest product so far."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor; the next take of this name and dtype overwrites it."""
        size = math.prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or len(buffer) < size:
            with torch.inference_mode(False):
                buffer = self._buffers[name, dtype] = torch.empty(size, dtype=dtype)
        return buffer[:size].view(shape)

    def cast(self, name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x contiguous and of dtype; x itself if it is."""
        return x if x.dtype == dtype and x.is_contiguous() else self.take(name, x.shape, dtype).copy_(x)

    def heads(self, name: str, x: Tensor, index: Tensor) -> Tensor:
        """x [..., D] -> [n, D]: single heads by their index in the flattened leading dimensions."""
        dim = x.shape[-1]
        return torch.index_select(x.view(-1, dim), 0, index, out=self.take(name, (len(index), dim), x.dtype))

    def joined(self, name: str, first: Tensor | None, second: Tensor, dtype: torch.dtype) -> Tensor:
        """Both along their first dimension, contiguous and in dtype."""
        start = 0 if first is None else len(first)
        both = self.take(name, (start + len(second), *second.shape[1:]), dtype)
        if first is not None:
            both[:start] = first
        both[start:] = second
        return both

    def product(self, name: str, a: Tensor, b: Tensor, alpha: float = 1.0) -> Tensor:
        """alpha * a @ b of two batches of matrices."""
        out = self.take(name, (len(a), a.shape[1], b.shape[2]), a.dtype)
        return torch.baddbmm(out, a, b, beta=0, alpha=alpha, out=out)
