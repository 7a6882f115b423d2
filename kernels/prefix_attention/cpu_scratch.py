"""Memory of the CPU backend that lives between calls, cut and shaped for a stage once.

Fresh pages for the temporaries, or shaping them anew for every product, would cost as much as the products.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .cpu_plan import Product, Stage


@dataclass(frozen=True, eq=False)
class Block:
    """A batch of matrices, seen in three ways."""

    batch: Tensor
    turned: Tensor  # each transposed
    flat: Tensor  # below one another

    @classmethod
    def of(cls, x: Tensor) -> Block:
        return cls(x, x.transpose(1, 2), x.view(-1, x.shape[2]))


@dataclass(frozen=True, eq=False)
class Views:
    """What one product reads and writes: for each tile and KV head a matrix."""

    q: Block  # [G * L, D]
    grad: Block
    parts: Block  # of the output, or the gradient of q
    k: Block  # [K, D]
    v: Block
    dk: Block
    dv: Block
    scores: Block  # [K, G * L], then weights: in the dtype of sums and exponentials
    narrow: Block  # the same in the dtype of matrix products; the same memory if that is the same
    slopes: Block  # the gradient of the scores
    masked: Tensor  # [B, Hkv, W, G, L], the scores that the bias is added to
    peaks: Tensor  # [B * Hkv, 1, G * L]
    totals: Tensor


@dataclass(frozen=True, eq=False)
class Workspace:
    """What the products of a stage leave, by grouped row or key."""

    parts: Tensor  # [rows, D]
    dk: Tensor  # [keys, D]
    dv: Tensor
    peaks: Tensor  # [rows]
    totals: Tensor
    products: list[Views]


class Scratch(threading.local):
    """Named buffers, one set per thread, as large as the largest stage so far, and workspaces made of them."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self._workspaces: WeakKeyDictionary[Stage, dict[tuple[torch.dtype, int], Workspace]] = WeakKeyDictionary()

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor; the next take of this name and dtype overwrites it."""
        size = math.prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.shape[0] < size:
            with torch.inference_mode(False):  # powers of two: older workspaces hold what they were cut from
                buffer = self._buffers[name, dtype] = torch.empty(1 << size.bit_length(), dtype=dtype)
        return buffer[:size].view(shape)

    def cast(self, name: str, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x contiguous and of dtype; x itself if it is."""
        return x if x.dtype == dtype and x.is_contiguous() else self.take(name, x.shape, dtype).copy_(x)

    def workspace(self, stage: Stage, narrow: torch.dtype, wide: torch.dtype, dim: int) -> Workspace:
        """Memory for this stage. All stages share it: one is done before the next begins."""
        known = self._workspaces.setdefault(stage, {})
        if (narrow, dim) not in known:
            with torch.inference_mode(False):
                known[narrow, dim] = self._cut(stage, narrow, wide, dim)
        return known[narrow, dim]

    def _cut(self, stage: Stage, narrow: torch.dtype, wide: torch.dtype, dim: int) -> Workspace:
        all_rows = stage.group_rows.shape[0]
        all_keys = sum(product.group_keys.shape[0] for product in stage.products)
        parts = self.take("parts", (all_rows, dim), narrow)
        dk, dv = self.take("dk", (all_keys, dim), narrow), self.take("dv", (all_keys, dim), narrow)
        peaks, totals = self.take("peaks", (all_rows,), wide), self.take("totals", (all_rows,), wide)
        products, row, key = [], 0, 0
        for product in stage.products:
            rows = slice(row, row + product.group_rows.shape[0])
            keys = slice(key, key + product.group_keys.shape[0])
            products.append(self._views(product, parts[rows], dk[keys], dv[keys], peaks[rows], totals[rows]))
            row, key = rows.stop, keys.stop
        return Workspace(parts, dk, dv, peaks, totals, products)

    def _views(self, product: Product, parts: Tensor, dk: Tensor, dv: Tensor, peaks: Tensor, totals: Tensor) -> Views:
        """Of one product, given its own part of the workspace."""
        narrow, wide, dim = parts.dtype, peaks.dtype, parts.shape[1]
        batch, length, keys = product.tiles * product.kv_heads, product.rows.shape[1], product.keys.shape[1]
        rows = parts.shape[0] // batch

        def block(name: str, *shape: int, dtype: torch.dtype = narrow) -> Block:
            return Block.of(self.take(name, (batch, *shape), dtype))

        scores = block("scores", keys, rows, dtype=wide)
        by_head = scores.batch.view(product.tiles, product.kv_heads, keys, -1, length)
        return Views(
            q=block("q", rows, dim),
            grad=block("grad", rows, dim),
            parts=Block.of(parts.view(batch, rows, dim)),
            k=block("k", keys, dim),
            v=block("v", keys, dim),
            dk=Block.of(dk.view(batch, keys, dim)),
            dv=Block.of(dv.view(batch, keys, dim)),
            scores=scores,
            narrow=scores if narrow == wide else block("scores", keys, rows),
            slopes=block("slopes", keys, rows),
            masked=by_head if product.bias is None else by_head[:, :, keys - product.bias.shape[2] :],
            peaks=peaks.view(batch, 1, rows),
            totals=totals.view(batch, 1, rows),
        )
