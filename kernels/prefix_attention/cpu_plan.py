"""Turns the tiles of a forest into few batched matrix products. Decides by shape alone; computes no attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpu_tiles import Tiles, tiles_of
from .forest import PromptForest

MASKED = -1e30  # added to a hidden score; finite, so that a row that sees nothing gives no NaN

_SCORES = 1 << 20  # of one product, over all heads: it and what it gathers stay in the cache
_LAUNCH = 1 << 16  # scores that cost as much as one more product
_KEY = 2  # rows that cost as much as copying their keys
_SIZES = 32  # of tiles at most, that the products are chosen from
_STAGE = 1 << 22  # scores of a stage, over all heads
_ROW = 32  # keys that cost as much as a row by itself
_KEPT = 32  # copies of keys per row up to which a stage is kept


@dataclass(frozen=True, eq=False)
class Product:
    """B tiles of L rows against K keys each, padded by repeating a tile's last row or key."""

    tiles: int
    kv_heads: int
    rows: Tensor  # [B, L] packed rows
    keys: Tensor  # [B, K] indices into [prefix keys | token keys]
    real_rows: Tensor  # bool [B, L]
    real_keys: Tensor  # bool [B, K]
    bias: Tensor | None  # see `Plan.bias`; None: not kept
    group_rows: Tensor  # [B * Hq * L] from the stage's packed rows, single heads
    padding: Tensor  # which of these are padding
    group_keys: Tensor  # [B * Hkv * K] from [prefix keys | token keys], single heads


@dataclass(frozen=True, eq=False)
class Stage:
    """A run of packed rows and the products that give all of their attention. Indices address single heads.

    Grouped rows stand in the order [product, tile, head, row], grouped keys likewise.
    """

    rows: slice
    products: list[Product]
    scores: list[int]  # how many each product has, over all heads
    group_rows: Tensor  # from the stage's packed rows; n * Hq, which does not exist, where the row is padding
    places: Tensor  # of packed rows among the grouped ones
    key_ids: Tensor | None  # the keys that the stage meets, ascending; None: all
    copies: Tensor  # grouped keys by key: the copies of each
    copy_ends: Tensor  # [keys + 1] where the copies of each begin and end


class Plan:
    """The stages of a forest for one kind of layer."""

    def __init__(self, forest: PromptForest, window: int | None, heads: int, kv_heads: int) -> None:
        self.window = window  # None where it hides nothing
        self._heads, self._kv_heads = torch.arange(heads), torch.arange(kv_heads)
        self._first = torch.cat([forest.prefix_first, forest.first])
        self._last = torch.cat([forest.prefix_last, forest.last])
        self._positions = torch.cat([forest.prefix_position_ids, forest.position_ids])
        self._prefix, self._bidirectional = forest.num_prefix_tokens, forest.bidirectional
        tiles, self._context_keys = tiles_of(forest, window)
        costs = tiles.rows * (tiles.contexts + tiles.keys + _ROW) * heads
        _, counts = torch.unique_consecutive((costs.cumsum(0) - costs) // _STAGE, return_counts=True)
        self._tiles = [tiles[part] for part in torch.split(torch.arange(len(tiles)), counts.tolist())]
        self._stages: dict[int, Stage] = {}

    def __len__(self) -> int:
        return len(self._tiles)

    def __iter__(self) -> Iterator[Stage]:
        """The stages in order. Those whose indices would outgrow what they index are not kept."""
        for number, tiles in enumerate(self._tiles):
            stage = self._stages.get(number) or self._stage(tiles)
            if stage.copies.shape[0] <= _KEPT * stage.places.shape[0]:
                self._stages[number] = stage
            yield stage

    @cached_property
    def scores(self) -> int:
        """Of all products and heads, padding included."""
        return sum(sum(stage.scores) for stage in self)

    def bias(self, product: Product) -> Tensor:
        """[B or 1, 1, W, 1, L], added to the scores of the last W keys. With a window it is too large to keep."""
        return self._mask(product.rows, product.keys, product.real_keys) if product.bias is None else product.bias

    def _stage(self, tiles: Tiles) -> Stage:
        first, last = int(tiles.row[0]), int(tiles.row[-1] + tiles.rows[-1])
        sizes = (tiles.contexts + tiles.keys) * (1 << 20) + tiles.rows
        products = [self._product(part, first) for part in _buckets(tiles[sizes.argsort(stable=True)], len(self._heads))]
        beyond = (last - first) * len(self._heads)
        group_rows = torch.cat([torch.where(_spread(x.real_rows, self._heads), x.group_rows, beyond) for x in products])
        copies = torch.cat([_spread(x.real_keys, self._kv_heads) for x in products]).nonzero().flatten()
        index = torch.cat([x.group_keys for x in products])[copies]
        key_ids, count = None, len(self._first) * len(self._kv_heads)
        if len(self) > 1:
            key_ids, index = torch.unique(index, return_inverse=True)
            count = len(key_ids)
        return Stage(
            rows=slice(first, last),
            products=products,
            scores=[len(x.group_rows) * x.keys.shape[1] for x in products],
            group_rows=group_rows,
            places=group_rows.argsort(stable=True)[:beyond],
            key_ids=key_ids,
            copies=copies[index.argsort(stable=True)],
            copy_ends=F.pad(torch.bincount(index, minlength=count).cumsum(0), (1, 0)),
        )

    def _product(self, tiles: Tiles, first_row: int) -> Product:
        counts, contexts = tiles.contexts[:, None] + tiles.keys[:, None], tiles.contexts[:, None]
        row, key = torch.arange(int(tiles.rows.max())), torch.arange(int(counts.max()))
        rows = tiles.row[:, None] + torch.minimum(row, tiles.rows[:, None] - 1)
        at = torch.minimum(key, counts - 1)
        copied = self._context_keys[tiles.context[:, None] + torch.minimum(at, contexts)]
        keys = torch.where(at < contexts, copied, tiles.key[:, None] + at - contexts)
        real_rows, real_keys = row < tiles.rows[:, None], key < counts
        bias = None
        if self.window is None:
            clear = (self._first[keys] <= rows[:, :1]) & (self._last[keys] > rows[:, -1:]) & real_keys
            seen = int(clear.all(0).long().cumprod(0).sum())  # by every row
            bias = self._mask(rows, keys[:, seen:], real_keys[:, seen:])
            bias = bias[:1] if bool((bias == bias[:1]).all()) else bias
        return Product(
            tiles=len(tiles),
            kv_heads=len(self._kv_heads),
            rows=rows,
            keys=keys,
            real_rows=real_rows,
            real_keys=real_keys,
            bias=bias,
            group_rows=_by_head(rows - first_row, self._heads),
            padding=(~_spread(real_rows, self._heads)).nonzero().flatten(),
            group_keys=_by_head(keys, self._kv_heads),
        )

    def _mask(self, rows: Tensor, keys: Tensor, real_keys: Tensor) -> Tensor:
        """rows [B, L], keys [B, K], bool [B, K] -> MASKED where a row does not see a key, else 0: [B, 1, K, 1, L]."""
        row, key = rows[:, None], keys[..., None]
        hidden = (self._first[key] > row) | (self._last[key] <= row) | ~real_keys[..., None]
        if self.window is not None:
            far = (self._positions[row + self._prefix] - self._positions[key]).abs() >= self.window
            hidden |= far & (key >= self._prefix) if self._bidirectional else far
        return torch.zeros(hidden.shape).masked_fill_(hidden, MASKED)[:, None, :, None]


def plan_of(forest: PromptForest, window: int | None, heads: int, kv_heads: int) -> Plan:
    """The plan of this forest, built once per kind of layer and kept with the forest."""
    if window is not None and (forest.num_tokens == 0 or window > int(forest.position_ids.max())):
        window = None
    plan: Plan = forest.plan(("cpu", window, heads, kv_heads), lambda: Plan(forest, window, heads, kv_heads))
    return plan


def _buckets(tiles: Tiles, heads: int) -> Iterator[Tiles]:
    """Cut tiles, in ascending order of keys and rows, into runs that are padded to their largest: least cost in all.

    Cost: rows x keys after padding, the copies of keys, and a constant for each product.
    """
    keys = tiles.contexts + tiles.keys
    changes = ((keys.diff() != 0) | (tiles.rows.diff() != 0)).nonzero().flatten() + 1
    if len(changes) >= _SIZES:
        changes = changes[torch.linspace(0, len(changes) - 1, _SIZES).long()]
    starts = [0, *changes.tolist(), len(tiles)]
    tallest = [int(run.max()) for run in torch.tensor_split(tiles.rows, changes)]
    widest = keys[torch.tensor(starts[1:]) - 1].tolist()
    best, cut = [0.0], [0]
    for end in range(1, len(starts)):
        height, options = 0, []
        for begin in range(end - 1, -1, -1):
            height = max(height, tallest[begin])
            area = (starts[end] - starts[begin]) * (height + _KEY) * widest[end - 1]
            options.append((best[begin] + area + _LAUNCH / heads, begin))
        cost, begin = min(options)
        best.append(cost)
        cut.append(begin)
    bounds = [len(starts) - 1]
    while bounds[-1]:
        bounds.append(cut[bounds[-1]])
    for begin, end in zip(bounds[:0:-1], bounds[-2::-1], strict=True):
        bucket = tiles[starts[begin] : starts[end]]
        most = max(1, _SCORES // (heads * max(tallest[begin:end]) * widest[end - 1]))
        step = -(-len(bucket) // -(-len(bucket) // most))
        for first in range(0, len(bucket), step):
            yield bucket[first : first + step]


def _by_head(index: Tensor, heads: Tensor) -> Tensor:
    """index [B, L] of rows -> index of single heads in the order [B, heads, L]."""
    return (index[:, None, :] * len(heads) + heads[:, None]).flatten()


def _spread(real: Tensor, heads: Tensor) -> Tensor:
    """bool [B, L] of rows -> of single heads in the order [B, heads, L]."""
    return real[:, None].expand(-1, len(heads), -1).flatten()
