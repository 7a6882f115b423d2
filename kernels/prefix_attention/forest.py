"""The prompt forest: which rows of a packed batch see which keys. Knows segments and trees, never a tensor of activations."""

from __future__ import annotations

import itertools
import operator
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_ALIVE: weakref.WeakValueDictionary[int, PromptForest] = weakref.WeakValueDictionary()
_HANDLES = itertools.count()


@dataclass(frozen=True, eq=False)
class PromptForest:
    """Segments of one packed batch, laid out depth first, and the visibility of every key.

    Key ``j`` is visible to the rows ``first[j] <= i < last[j]``. Build it with :meth:`from_segments`, once per batch:
    every layer, forward and backward, reuses it and what the backends planned for it.

    Shapes: ``position_ids``, ``first``, ``last`` int64 [S]; ``prefix_first``, ``prefix_last``,
    ``prefix_position_ids`` int64 [sum(prefix_lengths)]; ``starts`` int64 [segments + 1], the first row of each
    segment and S. All of them live on one device (:meth:`to`); ``segments`` and ``layout`` stay on the host.
    """

    num_tokens: int
    bidirectional: bool
    position_ids: Tensor
    first: Tensor
    last: Tensor
    prefix_first: Tensor
    prefix_last: Tensor
    prefix_position_ids: Tensor
    starts: Tensor
    segments: Segments = field(repr=False)
    layout: Tensor = field(repr=False)
    _host: PromptForest | None = field(default=None, repr=False)
    _plans: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_segments(
        cls,
        lengths: Sequence[int],
        parents: Sequence[int],
        bidirectional: bool = False,
        prefix_lengths: Sequence[int] = (),
        prefixes: Sequence[int] | None = None,
    ) -> PromptForest:
        """Build a forest from segments in depth-first order.

        lengths: tokens of each segment (0 allowed). parents: index of each segment's parent, -1 for a root.
        prefix_lengths: tokens of each external prefix (keys and values that have no rows of their own).
        prefixes: per segment, the external prefix of a root, -1 for none; ignored on non-roots. Left out, a single
        external prefix belongs to every tree.

        In a causal forest positions count along the path, external prefix included. In a bidirectional forest an
        external prefix takes no positions and is exempt from the window.

        Raises ValueError if the segments are not in depth-first order, if an index or a length is out of range, or
        if trees that share an external prefix do not stand side by side.
        """
        segments = Segments.checked(lengths, parents, prefix_lengths, prefixes)
        return _lay_out(segments, bool(bidirectional), next(_HANDLES))

    @property
    def num_prefix_tokens(self) -> int:
        """Rows that ``prefix_k`` and ``prefix_v`` must have."""
        return len(self.prefix_first)

    @property
    def longest_path(self) -> int:
        """Tokens of the longest path, an external prefix included where it takes positions; no batch of this layout has more."""
        positions = self.host.position_ids
        return int(positions.max()) + 1 if len(positions) else 0

    @property
    def host(self) -> PromptForest:
        """This forest with its index tensors on the CPU, where plans are made; no device is waited for."""
        return self._host or self

    @property
    def device(self) -> torch.device:
        """Where the index tensors live."""
        return self.position_ids.device

    def to(self, device: torch.device | str) -> PromptForest:
        """The same forest with its index tensors on ``device``; itself if they are there already."""
        if torch.empty(0, device=device).device == self.device:
            return self
        moved = {name: getattr(self, name).to(device) for name in INDEX_TENSORS}
        layout = self.layout.clone()
        layout[0] = next(_HANDLES)
        forest = PromptForest(self.num_tokens, self.bidirectional, **moved, segments=self.segments, layout=layout, _host=self.host)
        keep_track(forest)
        return forest

    def __reduce__(self) -> tuple[Callable[[Tensor, torch.device], PromptForest], tuple[Tensor, torch.device]]:
        """Copies and pickles are forests of their own: the handle of this one may be another forest's where they are read."""
        return _rebuilt, (self.layout, self.device)

    def plan(self, key: Any, build: Callable[[], Any]) -> Any:
        """What a backend prepared for this forest under ``key``: built on first use, then kept."""
        if key not in self._plans:
            self._plans[key] = build()
        return self._plans[key]


INDEX_TENSORS = ("position_ids", "first", "last", "prefix_first", "prefix_last", "prefix_position_ids", "starts")


@dataclass(frozen=True, eq=False)
class Segments:
    """The checked description of a forest on the host, one entry per segment (int64 tensors unless noted)."""

    lengths: Tensor
    parents: Tensor
    starts: Tensor  # [n + 1] first row of each segment, and S
    subtree_ends: Tensor  # segment after the last one of this segment's subtree
    contexts: Tensor  # keys that precede the segment on its path, external prefix included
    depths: Tensor
    prefixes: Tensor  # external prefix of the segment's tree, -1 for none
    prefix_starts: Tensor  # [prefixes + 1] first key of each external prefix, and their sum
    prefix_rows: Tensor  # [prefixes, 2] first and last + 1 row of the trees that use it

    @classmethod
    def checked(
        cls,
        lengths: Iterable[int],
        parents: Iterable[int],
        prefix_lengths: Iterable[int],
        prefixes: Iterable[int] | None,
    ) -> Segments:
        """Walk the segments once with a stack; every complaint about a forest is raised here."""
        sizes, parent_of = _integers("lengths", lengths), _integers("parents", parents)
        prefix_sizes = _integers("prefix_lengths", prefix_lengths)
        count = len(sizes)
        if len(parent_of) != count:
            raise ValueError(f"parents has {len(parent_of)} entries, lengths has {count}: give one parent per segment")
        chosen = _chosen_prefixes(count, prefix_sizes, prefixes)
        _refuse_negative("lengths", sizes)
        _refuse_negative("prefix_lengths", prefix_sizes)

        ends, contexts, depths, tree_prefixes = [count] * count, [0] * count, [0] * count, [-1] * count
        path: list[int] = []
        for segment, parent in enumerate(parent_of):
            while path and path[-1] != parent:
                ends[path.pop()] = segment
            if path:
                depths[segment] = len(path)
                contexts[segment] = contexts[parent] + sizes[parent]
                tree_prefixes[segment] = tree_prefixes[parent]
            elif parent != -1:
                raise ValueError(
                    f"parents[{segment}] is {parent}, which is not segment {segment - 1} or one of its ancestors: "
                    "list the segments depth first, each subtree in one piece, with -1 for a root"
                )
            else:
                prefix = chosen[segment]
                if not -1 <= prefix < len(prefix_sizes):
                    raise ValueError(
                        f"prefixes[{segment}] is {prefix}, but there are {len(prefix_sizes)} external prefixes: "
                        f"use -1 for none or an index below {len(prefix_sizes)}"
                    )
                tree_prefixes[segment] = prefix
                contexts[segment] = prefix_sizes[prefix] if prefix >= 0 else 0
            path.append(segment)

        starts = _offsets(sizes)
        return cls(
            lengths=_int64(sizes),
            parents=_int64(parent_of),
            starts=starts,
            subtree_ends=_int64(ends),
            contexts=_int64(contexts),
            depths=_int64(depths),
            prefixes=_int64(tree_prefixes),
            prefix_starts=_offsets(prefix_sizes),
            prefix_rows=_rows_of_prefixes(parent_of, tree_prefixes, len(prefix_sizes), starts),
        )


def keep_track(forest: PromptForest) -> None:
    """From here on `forest_of` finds this forest by the handle in its layout, as long as it lives."""
    _ALIVE[int(forest.layout[0])] = forest


def forest_of(layout: Tensor, device: torch.device) -> PromptForest:
    """The forest that ``layout`` describes: the living one where there is one, else rebuilt from the description."""
    forest = _ALIVE.get(int(layout[0]))
    return _rebuilt(layout, device) if forest is None else forest


def _rebuilt(layout: Tensor, device: torch.device) -> PromptForest:
    """A forest of its own from the description."""
    _, bidirectional, count, num_prefixes = layout[:4].tolist()
    lengths, parents, prefixes, prefix_lengths = torch.split(layout[4:], [count, count, count, num_prefixes])
    segments = Segments.checked(lengths.tolist(), parents.tolist(), prefix_lengths.tolist(), prefixes.tolist())
    return _lay_out(segments, bool(bidirectional), next(_HANDLES)).to(device)


def _lay_out(segments: Segments, bidirectional: bool, handle: int) -> PromptForest:
    count, rows = len(segments.lengths), int(segments.starts[-1])
    segment_of = torch.repeat_interleave(torch.arange(count), segments.lengths, output_size=rows)
    row = torch.arange(rows)
    first_of_segment = segments.starts[segment_of]
    offsets = segments.contexts
    prefix_sizes = segments.prefix_starts.diff()
    if bidirectional and len(prefix_sizes):
        own_prefix = torch.where(segments.prefixes >= 0, prefix_sizes[segments.prefixes.clamp(min=0)], 0)
        offsets = offsets - own_prefix
    prefix_of = torch.repeat_interleave(torch.arange(len(prefix_sizes)), prefix_sizes)
    header = torch.tensor([handle, bidirectional, count, len(prefix_sizes)])
    forest = PromptForest(
        num_tokens=rows,
        bidirectional=bidirectional,
        position_ids=row - first_of_segment + offsets[segment_of],
        first=first_of_segment if bidirectional else row,
        last=segments.starts[segments.subtree_ends][segment_of],
        prefix_first=segments.prefix_rows[prefix_of, 0],
        prefix_last=segments.prefix_rows[prefix_of, 1],
        prefix_position_ids=torch.arange(len(prefix_of)) - segments.prefix_starts[prefix_of],
        starts=segments.starts,
        segments=segments,
        layout=torch.cat([header, segments.lengths, segments.parents, segments.prefixes, prefix_sizes]),
    )
    keep_track(forest)
    return forest


def _rows_of_prefixes(parents: list[int], tree_prefixes: list[int], count: int, starts: Tensor) -> Tensor:
    """First and last + 1 row of the trees that use each prefix; an unused prefix gets an empty range."""
    rows = torch.zeros(count, 2, dtype=torch.int64)
    roots = [segment for segment, parent in enumerate(parents) if parent == -1]
    ends = [*roots[1:], len(parents)]
    previous = -1
    seen: set[int] = set()
    for root, end in zip(roots, ends, strict=False):
        prefix = tree_prefixes[root]
        if prefix >= 0:
            if prefix in seen and prefix != previous:
                raise ValueError(
                    f"prefixes[{root}] is {prefix}, which an earlier tree uses too, with a tree of another prefix in "
                    "between: put the trees that share an external prefix side by side"
                )
            if prefix not in seen:
                rows[prefix, 0] = starts[root]
            rows[prefix, 1] = starts[end]
            seen.add(prefix)
        previous = prefix
    return rows


def _chosen_prefixes(count: int, prefix_sizes: list[int], prefixes: Iterable[int] | None) -> list[int]:
    if prefixes is None:
        if len(prefix_sizes) > 1:
            raise ValueError(f"prefixes is missing: say which of the {len(prefix_sizes)} external prefixes a root uses")
        return [len(prefix_sizes) - 1] * count
    chosen = _integers("prefixes", prefixes)
    if len(chosen) != count:
        raise ValueError(f"prefixes has {len(chosen)} entries, lengths has {count}: give one per segment, -1 for none")
    return chosen


def _integers(name: str, values: Iterable[int]) -> list[int]:
    if isinstance(values, Tensor):
        values = values.tolist()
    try:
        return list(map(operator.index, values))
    except TypeError as error:
        raise ValueError(f"{name} must be a sequence of integers: {error}") from None


def _refuse_negative(name: str, sizes: list[int]) -> None:
    if sizes and min(sizes) < 0:
        at = next(index for index, size in enumerate(sizes) if size < 0)
        raise ValueError(f"{name}[{at}] is {sizes[at]}: a length is 0 or more")


def _int64(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def _offsets(sizes: list[int]) -> Tensor:
    return _int64(list(itertools.accumulate(sizes, initial=0)))
