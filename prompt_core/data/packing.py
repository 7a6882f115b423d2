"""Token-budget packing: examples into passes of bounded length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def pack(items: Sequence[T], tokens: Callable[[T], int], budget: int) -> Iterator[list[T]]:
    """Split items, in order, into passes of at most `budget` tokens; one longer item is a pass of its own."""
    taken: list[T] = []
    total = 0
    for item in items:
        length = tokens(item)
        if taken and total + length > budget:
            yield taken
            taken, total = [], 0
        taken.append(item)
        total += length
    if taken:
        yield taken
