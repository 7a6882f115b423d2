"""Turns a forest into a short list of batched matrix products. Decides by shape alone; computes no attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .forest import PromptForest

MASKED = -1e30  # added to a hidden score; finite, so that a row that sees nothing gives no NaN

_SCORES = 1 << 20  # of one product, over all heads: they stay in the cache
_LAUNCH = 4096  # rows x keys that cost as much as one more product
_ROWS = 128  # longer segments are cut into chunks of rows, so that a causal one skips the keys after them
_FLASH = 2048  # from this length on a segment's own keys go through ATen flash
_CONTEXT = 1024  # longer contexts are never copied next to the examples' own keys
_LANES = 8  # key counts are padded to this: row reductions and products are faster


@dataclass(frozen=True, eq=False)
class Product:
    """One batched product: B groups of L rows against K keys each. Within a product no row appears twice.

    The four gathers address single heads: they go from packed [rows, heads, D] to groups [B, heads, L, D] and back in
    one copy. Padding repeats the last real row or key.
    """

    rows: Tensor  # [B, L] packed rows
    keys: Tensor  # [B, K] indices into [prefix keys | token keys]
    common: int  # the first `common` keys are the same for every B
    bias: Tensor | None  # [B or 1, 1, L or 1, W], added to the last W columns; None: everything is visible
    padding: Tensor | None  # bool [B, 1, L]: rows that are padding; None: none is
    real_keys: Tensor | None  # bool [B, K]; None: all of them
    row_ids: Tensor  # [n] the real rows
    key_ids: Tensor  # [m] the real keys after the common ones
    group_rows: Tensor  # [B * Hq * L] from q [S * Hq]
    group_keys: Tensor  # [B * Hkv * K] from k [N * Hkv]
    pack_rows: Tensor  # [n * Hq] from groups to the real rows
    pack_keys: Tensor  # [m * Hkv] from groups to the real keys


@dataclass(frozen=True, eq=False)
class Plan:
    """Every row is in exactly one of `own` and `flash`; `shared` adds what a row sees beyond that, in order."""

    own: list[Product]
    flash: list[tuple[int, int]]  # rows of long segments
    shared: list[Product]
    window: int | None  # None where the window hides nothing


def plan_of(forest: PromptForest, window: int | None, softcap: float | None, heads: int, kv_heads: int) -> Plan:
    """The plan of this forest, built once per kind of layer and kept with the forest."""
    if window is not None and (forest.num_tokens == 0 or window > int(forest.position_ids.max())):
        window = None
    flash = window is None and softcap is None
    key = ("cpu", window, flash, heads, kv_heads)
    plan: Plan = forest.plan(key, lambda: _Planner(forest, window, flash, heads, kv_heads).plan())
    return plan


class _Planner:
    def __init__(self, forest: PromptForest, window: int | None, flash: bool, heads: int, kv_heads: int) -> None:
        self.forest, self.window = forest, window
        self.lengths, self.starts = forest.segments.lengths, forest.segments.starts
        self.offset = forest.num_prefix_tokens  # token keys come after the prefix keys
        self.heads, self.kv_heads = torch.arange(heads), torch.arange(kv_heads)
        self.area = max(1, _SCORES // heads)  # rows x keys of one product
        self.flash_from = _FLASH if flash else forest.num_tokens + 1

    def plan(self) -> Plan:
        segments = self.forest.segments
        active = self.lengths.nonzero().flatten()
        long = self.lengths[active] >= self.flash_from
        flash, short = active[long], active[~long]

        own: list[Product] = []
        sharing = [flash[segments.contexts[flash] > 0]]  # segments that see a context without carrying a copy of it
        behind = short[segments.contexts[short] > 0]
        num_prefixes = len(segments.prefix_starts) - 1
        family = torch.where(segments.parents >= 0, segments.parents + num_prefixes, segments.prefixes)[behind]
        for members, copied in self._families(behind, family):
            if copied:
                own += self._own(members, self._context(int(members[0])))
            else:
                sharing.append(members)
        alone = torch.cat([short[segments.contexts[short] == 0], *sharing[1:]])
        own += self._own(alone, torch.empty(0, dtype=torch.int64))
        spans = [(int(self.starts[s]), int(self.starts[s + 1])) for s in flash.tolist()]
        return Plan(own, spans, list(self._shared(torch.cat(sharing))), self.window)

    def _families(self, behind: Tensor, family: Tensor) -> Iterator[tuple[Tensor, bool]]:
        """Segments behind the same context, and whether that context is copied next to each one's own keys.

        Copying saves a pass of merging. It pays where a family brings rows enough to fill a product, or where there
        are few families, and where its segments are long enough that the copy costs less than the products.
        """
        if not len(behind):
            return
        _, family, counts = torch.unique(family, return_inverse=True, return_counts=True)
        rows = torch.zeros_like(counts).index_add_(0, family, self.lengths[behind])
        context = torch.zeros_like(counts).index_copy_(0, family, self.forest.segments.contexts[behind])
        worth = (rows >= 64) | torch.tensor(len(counts) <= 4)
        copied = worth & (context <= _CONTEXT) & (rows >= 8 * counts)
        yield behind[~copied[family]], False
        order = family.argsort(stable=True)
        for number, members in enumerate(torch.split(behind[order], counts.tolist())):
            if copied[number]:
                yield members, True

    def _context(self, segment: int) -> Tensor:
        """The keys before a segment on its path, in order."""
        segments = self.forest.segments
        parent, prefix = int(segments.parents[segment]), int(segments.prefixes[segment])
        spans = []
        while parent >= 0:
            spans.append(torch.arange(int(self.starts[parent]), int(self.starts[parent + 1])) + self.offset)
            parent = int(segments.parents[parent])
        if prefix >= 0:
            spans.append(torch.arange(int(segments.prefix_starts[prefix]), int(segments.prefix_starts[prefix + 1])))
        return torch.cat(spans[::-1])

    def _own(self, members: Tensor, context: Tensor) -> Iterator[Product]:
        """Products of segments with their own keys, and with a common context before them."""
        lengths = self.lengths[members]
        order = lengths.argsort(stable=True)
        members = members[order]
        for bucket in torch.split(members, _bucket_sizes(lengths[order], len(context))):
            longest = int(self.lengths[bucket[-1]])
            for top in range(0, longest, _ROWS):
                bottom = min(top + _ROWS, longest)
                reaching = bucket[self.lengths[bucket] > top]
                width = len(context) + (longest if self.forest.bidirectional else bottom)
                for part in torch.split(reaching, max(1, self.area // ((bottom - top) * width))):
                    yield self._own_rows(part, top, bottom, context)

    def _own_rows(self, members: Tensor, top: int, bottom: int, context: Tensor) -> Product:
        """Rows top to bottom of some segments against the context and the segments' own keys."""
        lengths, starts = self.lengths[members, None], self.starts[members, None]
        row = torch.arange(top, bottom)
        ends = lengths.expand(-1, 1) if self.forest.bidirectional else lengths.clamp(max=bottom)
        width = _padded(len(context) + int(ends.max())) - len(context)
        key = torch.arange(width)
        own_keys = starts + torch.minimum(key, ends - 1) + self.offset
        beyond = (key >= ends)[:, None, None]  # [B, 1, 1, keys]
        later = (key > row[:, None])[None, None, :, min(top, width) :]  # [1, 1, L, keys from the first row on]
        return self._product(
            rows=starts + torch.minimum(row, lengths - 1),
            real_rows=row < lengths,
            keys=torch.cat([context.expand(len(members), -1), own_keys], dim=1),
            real_keys=torch.cat([torch.ones(len(members), len(context), dtype=torch.bool), key < ends], dim=1),
            common=len(context),
            hidden=beyond if self.forest.bidirectional else later,
        )

    def _shared(self, sharing: Tensor) -> Iterator[Product]:
        """Products of shared keys with all rows below them that do not carry a copy. One level of the trees at a time."""
        if not len(sharing):
            return
        segments = self.forest.segments
        is_sharing = torch.zeros(len(self.lengths), dtype=torch.bool).index_fill_(0, sharing, True)
        rows = torch.repeat_interleave(is_sharing, self.lengths).nonzero().flatten()
        below = torch.stack([self.starts[1:], self.starts[segments.subtree_ends]], dim=1)
        row_ranges = torch.searchsorted(rows, torch.cat([segments.prefix_rows, below]))
        key_starts = torch.cat([segments.prefix_starts[:-1], self.starts[:-1] + self.offset])
        key_counts = torch.cat([segments.prefix_starts.diff(), self.lengths])
        levels = torch.cat([torch.full((len(segments.prefix_rows),), -1), segments.depths])
        row_counts = row_ranges[:, 1] - row_ranges[:, 0]

        used = ((row_counts > 0) & (key_counts > 0)).nonzero().flatten()
        kinds = torch.stack([levels, _size_class(row_counts), _size_class(key_counts)], dim=1)[used]
        _, kind_of, counts = torch.unique(kinds, dim=0, return_inverse=True, return_counts=True)
        for members in torch.split(used[kind_of.argsort(stable=True)], counts.tolist()):
            longest, keys = int(row_counts[members].max()), int(key_counts[members].max())
            step = max(64, self.area // keys)
            for top in range(0, longest, step):
                bottom = min(top + step, longest)
                reaching = members[row_counts[members] > top]
                for part in torch.split(reaching, max(1, self.area // ((bottom - top) * keys))):
                    row = torch.arange(top, bottom)
                    count, first = row_counts[part, None], row_ranges[part, 0, None]
                    key = torch.arange(_padded(keys))
                    key_count = key_counts[part, None]
                    real_keys = key < key_count
                    yield self._product(
                        rows=rows[first + torch.minimum(row, count - 1)],
                        real_rows=row < count,
                        keys=key_starts[part, None] + torch.minimum(key, key_count - 1),
                        real_keys=real_keys,
                        common=0,
                        hidden=~real_keys[:, None, None],
                    )

    def _product(self, rows: Tensor, real_rows: Tensor, keys: Tensor, real_keys: Tensor, common: int, hidden: Tensor) -> Product:
        return Product(
            rows=rows,
            keys=keys,
            common=common,
            bias=_bias(hidden) if self.window is None else None,
            padding=None if real_rows.all() else ~real_rows[:, None],
            real_keys=None if real_keys.all() else real_keys,
            row_ids=rows[real_rows],
            key_ids=keys[:, common:][real_keys[:, common:]],
            group_rows=_group(rows, self.heads),
            group_keys=_group(keys, self.kv_heads),
            pack_rows=_pack(real_rows, self.heads),
            pack_keys=_pack(real_keys & (torch.arange(keys.shape[1]) >= common), self.kv_heads),
        )


def _group(index: Tensor, heads: Tensor) -> Tensor:
    """index [B, L] of rows -> index of single heads in the order [B, heads, L]."""
    return (index[:, None, :] * len(heads) + heads[:, None]).flatten()


def _pack(real: Tensor, heads: Tensor) -> Tensor:
    """Where in [B, heads, L] the heads of the real rows of [B, L] are, row by row."""
    batch, row = real.nonzero(as_tuple=True)
    return ((batch[:, None] * len(heads) + heads) * real.shape[1] + row[:, None]).flatten()


def _bias(hidden: Tensor) -> Tensor | None:
    """MASKED where hidden, without the leading columns that nothing hides."""
    columns = hidden.flatten(0, -2).any(0).nonzero()
    if not len(columns):
        return None
    hidden = hidden[..., int(columns[0]) :]
    return torch.zeros(hidden.shape).masked_fill_(hidden, MASKED)


def _bucket_sizes(lengths: Tensor, context: int) -> list[int]:
    """Cut ascending lengths into buckets that are padded to their longest: least rows x keys plus cost of launches."""
    if not len(lengths):
        return []
    distinct, counts = torch.unique_consecutive(lengths, return_counts=True)
    if len(distinct) > 32:
        step = -(-int(lengths[-1]) // 32)
        distinct, counts = torch.unique_consecutive(lengths.div(step, rounding_mode="floor"), return_counts=True)
        distinct = distinct * step + step - 1
    sizes, rows = counts.tolist(), distinct.tolist()
    best, cut = [0.0], [0]
    for end in range(1, len(sizes) + 1):
        area = rows[end - 1] * _padded(context + rows[end - 1])
        members, options = 0, []
        for begin in range(end - 1, -1, -1):
            members += sizes[begin]
            options.append((best[begin] + members * area + _LAUNCH, begin))
        cost, begin = min(options)
        best.append(cost)
        cut.append(begin)
    buckets, end = [], len(sizes)
    while end:
        buckets.append(sum(sizes[cut[end] : end]))
        end = cut[end]
    return buckets[::-1]


def _size_class(counts: Tensor) -> Tensor:
    """Sizes that are padded together: two classes per power of two."""
    return counts.clamp(min=1).double().log2().mul(2).ceil().long()


def _padded(keys: int) -> int:
    return -(-keys // _LANES) * _LANES
