"""Memory of the CPU backend that lives between calls, cut and shaped for a plan once.

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


class Scratch(threading.local):
    """Named buffers, one set per thread, as large as the largest stage so far, cut into workspaces."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self._workspaces: WeakKeyDictionary[Stage, dict[tuple[torch.dtype, int], Workspace]] = WeakKeyDictionary()

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor; the next take of this name and dtype overwrites it."""
        size = math.prod(shape)
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.shape[0] < size:
            with torch.inference_mode(False):
                buffer = self._buffers[name, dtype] = torch.empty(size, dtype=dtype)
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
        parts, key_parts = self.take("parts", (all_rows, dim), narrow), self.take("key parts", (all_keys, dim), narrow)
        peaks, totals = self.take("peaks", (all_rows,), wide), self.take("totals", (all_rows,), wide)

        def views(product: Product, first_row: int, first_key: int) -> Views:
            batch, length, keys = product.tiles * product.kv_heads, product.rows.shape[1], product.keys.shape[1]
            rows = product.group_rows.shape[0] // batch
            own_rows = slice(first_row, first_row + product.group_rows.shape[0])
            own_keys = slice(first_key, first_key + product.group_keys.shape[0])
            pair, kv = self.take("pair", (2 * batch, rows, dim), narrow), self.take("kv", (2 * batch, keys, dim), narrow)
            scores = self.take("scores", (3 * batch, keys, rows), narrow)
            weights = scores[batch : 2 * batch]
            wide_weights = weights if narrow == wide else self.take("weights", weights.shape, wide)
            hidden = keys if product.bias is None else product.bias.shape[2]
            return Views(
                q_rows=pair[:batch].view(-1, dim),
                grad_rows=pair[batch:].view(-1, dim),
                kv_rows=kv.view(-1, dim),
                q_t=pair[:batch].transpose(1, 2),
                q_grad=pair,
                q_grad_t=pair.transpose(1, 2),
                k=kv[:batch],
                v=kv[batch:],
                k_v=kv,
                slopes=scores[:batch],
                slopes_t=scores[:batch].transpose(1, 2),
                weights=weights,
                weights_t=weights.transpose(1, 2),
                grad_weights=scores[2 * batch :],
                slopes_weights=scores[: 2 * batch],
                weights_grad_weights=scores[batch:],
                wide_weights=wide_weights,
                masked=wide_weights.view(product.tiles, product.kv_heads, keys, -1, length)[:, :, keys - hidden :],
                peaks=peaks[own_rows].view(batch, 1, rows),
                totals=totals[own_rows].view(batch, 1, rows),
                parts=parts[own_rows].view(batch, rows, dim),
                key_parts=key_parts[own_keys].view(2 * batch, keys, dim),
            )

        row = key = 0
        products = []
        for product in stage.products:
            products.append(views(product, row, key))
            row, key = row + product.group_rows.shape[0], key + product.group_keys.shape[0]
        return Workspace(parts, key_parts, peaks, totals, products)


@dataclass(frozen=True, eq=False)
class Views:
    """What one product reads and writes: for each tile and KV head a matrix, M = B * Hkv of them, R = G * L rows.

    What stands side by side in memory is multiplied in one go: q and grad by k and v, slopes and weights by q and grad.
    """

    q_rows: Tensor  # [M * R, D]
    grad_rows: Tensor
    kv_rows: Tensor  # [2 * M * K, D]
    q_t: Tensor  # [M, D, R]
    q_grad: Tensor  # [2 * M, R, D]
    q_grad_t: Tensor
    k: Tensor  # [M, K, D]
    v: Tensor
    k_v: Tensor  # [2 * M, K, D]
    slopes: Tensor  # [M, K, R], the gradient of the scores
    slopes_t: Tensor
    weights: Tensor  # [M, K, R], scores before
    weights_t: Tensor
    grad_weights: Tensor  # [M, K, R]
    slopes_weights: Tensor  # [2 * M, K, R]
    weights_grad_weights: Tensor
    wide_weights: Tensor  # [M, K, R] in the dtype of sums and exponentials; the weights themselves if it is theirs
    masked: Tensor  # [B, Hkv, W, G, L] of these, that the bias is added to
    peaks: Tensor  # [M, 1, R] of the workspace's
    totals: Tensor
    parts: Tensor  # [M, R, D]
    key_parts: Tensor  # [2 * M, K, D]


@dataclass(frozen=True, eq=False)
class Workspace:
    """What the products of a stage leave, by grouped row or key."""

    parts: Tensor  # [rows, D]: of the output, or the gradient of q
    key_parts: Tensor  # [keys, D]: gradients of k and of v
    peaks: Tensor  # [rows]
    totals: Tensor
    products: list[Views]
