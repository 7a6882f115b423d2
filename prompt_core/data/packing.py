"""Token-budget packing: examples into passes of bounded length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # reading data needs no torch
    from prompt_core.encoding import Encoded


def pack(examples: Sequence[Encoded], budget: int) -> Iterator[list[Encoded]]:
    """Split examples, in order, into passes of at most `budget` tokens; one longer example is a pass of its own."""
    taken: list[Encoded] = []
    tokens = 0
    for example in examples:
        length = len(example.input) + len(example.target)
        if taken and tokens + length > budget:
            yield taken
            taken, tokens = [], 0
        taken.append(example)
        tokens += length
    if taken:
        yield taken
