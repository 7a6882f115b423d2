"""A forest of fixed size whose contents are exchanged in place, for compiled code and captured CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from .forest import INDEX_TENSORS, PromptForest, keep_track


@dataclass(frozen=True, eq=False)
class StandingForest(PromptForest):
    """A forest that keeps its handle, its shapes and the memory of its tensors while batch after batch is loaded into it.

    What is planned for it on a GPU has the sizes of the worst batch, and is overwritten in place: a kernel that was
    captured with it runs on the new batch. What is planned for the CPU is planned anew. Loading and computing must be on one stream.
    """

    _builds: dict[Any, Callable[[], Any]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        tokens: int,
        segments: int,
        device: torch.device | str = "cpu",
        bidirectional: bool = False,
        prefix_lengths: Sequence[int] = (),
    ) -> StandingForest:
        """An empty one: all rows are padding, each segment of it a tree of its own.

        tokens: rows, at least what any batch has. segments: at least one more than any batch has.
        """
        padding = _padding(tokens, segments)
        base = PromptForest.from_segments(padding, [-1] * segments, bidirectional, prefix_lengths, [-1] * segments)
        moved = {entry.name: getattr(base.to(device), entry.name) for entry in fields(base)} | {"_host": base, "_plans": {}}
        tensors = {name: moved[name].clone() for name in (*INDEX_TENSORS, "layout")}
        forest = cls(**moved | tensors)
        keep_track(forest)
        return forest

    @property
    def longest_path(self) -> int:
        """What no batch exceeds."""
        return self.num_tokens + self.num_prefix_tokens

    def load(self, lengths: Sequence[int], parents: Sequence[int], prefixes: Sequence[int] | None = None) -> None:
        """Exchange the contents; the rows behind the segments are padding, which sees itself alone.

        Arguments as in `from_segments`. Raises ValueError also if tokens or segments exceed the size of this forest.
        """
        count, rows = len(self.segments.lengths) - len(lengths), self.num_tokens - sum(lengths)
        if count < 1 or rows < 0:
            raise ValueError(
                f"lengths has {len(lengths)} segments of {sum(lengths)} tokens: "
                f"this forest has room for {len(self.segments.lengths) - 1} of {self.num_tokens}"
            )
        sizes = self.segments.prefix_starts.diff().tolist()
        chosen = [len(sizes) - 1] * len(lengths) if prefixes is None and len(sizes) < 2 else prefixes
        new = PromptForest.from_segments(
            [*lengths, *_padding(rows, count)],
            [*parents, *[-1] * count],
            self.bidirectional,
            sizes,
            None if chosen is None else [*chosen, *[-1] * count],
        )
        for name in INDEX_TENSORS:
            _overwrite(getattr(self, name), getattr(new, name))
        self.layout[1:] = new.layout[1:]
        object.__setattr__(self, "segments", new.segments)
        object.__setattr__(self, "_host", new)
        for key, build in list(self._builds.items()):
            if key[0] == "cpu":
                del self._plans[key], self._builds[key]
            else:
                _exchanged(self._plans[key], build())

    def plan(self, key: Any, build: Callable[[], Any]) -> Any:
        """As in a `PromptForest`; the next `load` plans again."""
        self._builds.setdefault(key, build)
        return super().plan(key, build)


def _padding(rows: int, count: int) -> list[int]:
    """Lengths of the padding's segments: as even as they come, for the work grows with their square."""
    return [rows // count + (number < rows % count) for number in range(count)]


def _exchanged(old: Any, new: Any) -> Any:
    """The old plan with the new one's contents."""
    if isinstance(old, Tensor):
        _overwrite(old, new)
    elif is_dataclass(old):
        for entry in fields(old):
            _exchanged(getattr(old, entry.name), getattr(new, entry.name))
    elif isinstance(old, tuple):
        for before, after in zip(old, new, strict=True):
            _exchanged(before, after)
    elif old != new:
        raise RuntimeError(f"a plan of fixed size changed from {old} to {new}")
    return old


def _overwrite(old: Tensor, new: Tensor) -> None:
    if old.shape != new.shape:
        raise RuntimeError(f"a plan of fixed size changed from {list(old.shape)} to {list(new.shape)}")
    new = new.pin_memory() if old.is_cuda and new.is_cpu else new
    old.copy_(new, non_blocking=True)
