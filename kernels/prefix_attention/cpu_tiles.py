"""Cuts a forest into tiles: a few rows and all the keys that they see. Decides by shape alone."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from .forest import PromptForest, Segments

_ROWS = 64  # of a tile at most: a causal tile skips the keys after it
_PACK = 32  # rows of short subtrees of one parent that are kept together
_SPREAD = 16  # keys of a context for each row that is kept together, so that its copies stay few


@dataclass(frozen=True, eq=False)
class Tiles:
    """One entry per tile, int64. Its keys are a stretch of `context_keys`, then a stretch of [prefix keys | token keys]."""

    row: Tensor  # the first
    rows: Tensor
    context: Tensor  # the first, a position in `context_keys`; every row of the tile sees all of these
    contexts: Tensor
    key: Tensor  # the first own key
    keys: Tensor

    def __getitem__(self, index: Tensor | slice) -> Tiles:
        return Tiles(*(getattr(self, field.name)[index] for field in fields(self)))

    def __len__(self) -> int:
        return self.row.shape[0]


def tiles_of(forest: PromptForest, window: int | None) -> tuple[Tiles, Tensor]:
    """Tiles in the order of their rows, and their `context_keys`."""
    segments = forest.segments
    first, last, owner = _units(segments)
    lengths, contexts = last - first, segments.contexts[owner]
    counts = -(-lengths // _ROWS)
    unit = torch.repeat_interleave(counts)
    height = (-(-lengths // counts))[unit]
    first, last = first[unit], last[unit]
    top = first + ranges(torch.zeros_like(counts), counts) * height
    bottom = torch.minimum(top + height, last)
    reach = torch.full_like(top, forest.num_tokens)
    if window is not None:
        reach[(lengths == segments.lengths[owner])[unit]] = max(window, 1) - 1  # within a segment rows are as far apart as positions
    begin = torch.maximum(first, top - reach)
    end = torch.minimum(last if forest.bidirectional else bottom, bottom + reach)

    families, family = torch.unique(_family(segments)[owner], return_inverse=True)
    member = torch.zeros_like(families).index_copy_(0, family, owner)
    sizes = segments.contexts[member]
    starts = sizes.cumsum(0) - sizes
    tiles = Tiles(top, bottom - top, starts[family][unit], contexts[unit], begin + forest.num_prefix_tokens, end - begin)
    return tiles, _contexts(forest, member, starts, int(sizes.sum()))


def ranges(first: Tensor, counts: Tensor) -> Tensor:
    """first[i], first[i] + 1, ... for counts[i] numbers each, one after the other."""
    before = counts.cumsum(0) - counts
    return torch.repeat_interleave(first - before, counts) + torch.arange(int(counts.sum()))


def _units(segments: Segments) -> tuple[Tensor, Tensor, Tensor]:
    """First and last + 1 row of each run of rows behind one context, and a segment that has this context.

    A run is a segment, or a small subtree, or several small ones of one parent. Trees are kept apart, so that what is
    not a number in one is none in another, unless their prefix is so long that copies of it would cost more than they.
    """
    totals = (segments.starts[segments.subtree_ends] - segments.starts[:-1]).tolist()
    lengths, starts, ends = segments.lengths.tolist(), segments.starts.tolist(), segments.subtree_ends.tolist()
    contexts, families, parents = segments.contexts.tolist(), _family(segments).tolist(), segments.parents.tolist()
    first: list[int] = []
    last: list[int] = []
    owner: list[int] = []
    segment, open_family = 0, None
    while segment < len(lengths):
        many, total = contexts[segment] // _SPREAD, totals[segment]
        if total > max(_PACK, many):
            open_family, total, following = None, lengths[segment], segment + 1
        else:
            together = many if parents[segment] < 0 else max(_PACK, many)
            following = ends[segment]
            if families[segment] == open_family and starts[segment] - first[-1] + total <= together:
                last[-1] += total
                total = 0
            elif total:
                open_family = families[segment]
        if total:
            first.append(starts[segment])
            last.append(starts[segment] + total)
            owner.append(segment)
        segment = following
    return torch.tensor(first, dtype=torch.int64), torch.tensor(last, dtype=torch.int64), torch.tensor(owner, dtype=torch.int64)


def _family(segments: Segments) -> Tensor:
    """A number for the context of each segment: its parent, or behind these the external prefix of a root."""
    return torch.where(segments.parents >= 0, segments.parents, segments.prefixes + len(segments.lengths) + 1)


def _contexts(forest: PromptForest, members: Tensor, starts: Tensor, total: int) -> Tensor:
    """The keys before each member on its path, in order, from `starts` on; and one more, so that there is a last one."""
    segments = forest.segments
    keys = torch.zeros(total + 1, dtype=torch.int64)
    prefix = segments.prefixes[members]
    sizes = segments.prefix_starts.diff()[prefix[prefix >= 0]]
    keys[ranges(starts[prefix >= 0], sizes)] = ranges(segments.prefix_starts[prefix[prefix >= 0]], sizes)
    ancestors = segments.parents[members]
    while len(ancestors):
        starts, ancestors = starts[ancestors >= 0], ancestors[ancestors >= 0]
        sizes = segments.lengths[ancestors]
        own = ranges(segments.starts[ancestors] + forest.num_prefix_tokens, sizes)
        keys[ranges(starts + segments.contexts[ancestors], sizes)] = own
        ancestors = segments.parents[ancestors]
    return keys
