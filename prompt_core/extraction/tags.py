"""BIO tags (IOB2): entities to one tag per token, scores of tags to the best valid sequence, and that back to entities.

Tag 0 is outside, 1 + 2i begins an entity of label i, 2 + 2i is inside of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from prompt_core.extraction.spans import Entity

OUTSIDE = 0
IGNORED = -100  # what PyTorch's cross-entropy leaves out

Places: TypeAlias = Sequence[tuple[int, int] | None]


@dataclass(frozen=True)
class Tagging:
    """One tag per token, and what became of the entities.

    Attributes:
        tags: IGNORED for a token that is not of the text, or of an entity that is not there as a whole.
        rounded: entities whose ends are inside of a token: they grow to the whole of it.
        lost: entities that the tags do not hold: cut with the end of a long text, or without a token of their own.
    """

    tags: tuple[int, ...]
    rounded: int
    lost: int


def num_tags(labels: Sequence[str]) -> int:
    """How many tags there are for so many labels."""
    return 1 + 2 * len(labels)


def tag_entities(entities: Sequence[Entity], places: Places, window: tuple[int, int], labels: Sequence[str]) -> Tagging:
    """The tags of a text's tokens.

    Args:
        entities: in the order of the text, none overlaps another, all of known labels.
        places: the characters of each token, in order; None for one that is not of the text.
        window: the characters of the text that were kept; an entity that reaches beyond is lost as a whole.
        labels: in the order of the tags.
    """
    tags = [IGNORED if place is None else OUTSIDE for place in places]
    rounded = lost = 0
    taken = 0
    for entity in entities:
        own = [
            i for i, place in enumerate(places) if i >= taken and place is not None and place[0] < entity.end and entity.start < place[1]
        ]
        if entity.start < window[0] or entity.end > window[1] or not own:
            lost += 1
            for i in own:
                tags[i] = IGNORED
            continue
        tag = 1 + 2 * labels.index(entity.label)
        for i in own:
            tags[i] = tag if i == own[0] else tag + 1
        taken = own[-1] + 1
        rounded += _extent(places, own) != (entity.start, entity.end)
    return Tagging(tuple(tags), rounded, lost)


def entities_of(tags: Sequence[int], places: Sequence[tuple[int, int]], labels: Sequence[str]) -> list[Entity]:
    """The entities of a tag sequence, read strictly: an inside tag that continues nothing is outside."""
    found: list[Entity] = []
    open_tag = OUTSIDE  # the inside tag that would go on
    for tag, (start, end) in zip(tags, places, strict=True):
        if tag == open_tag != OUTSIDE:
            found[-1] = Entity(found[-1].start, max(end, found[-1].end), found[-1].label)
            continue
        open_tag = OUTSIDE
        if tag % 2 == 1 and (start := max(start, found[-1].end if found else 0)) < end:  # two tokens may share a character's bytes
            found.append(Entity(start, end, labels[(tag - 1) // 2]))
            open_tag = tag + 1
    return found


def best_tags(scores: NDArray[np.float64]) -> list[int]:
    """The valid sequence with the highest sum of scores: inside tags come behind their own kind alone (Viterbi 1967).

    Args:
        scores: of each token and tag, [n, tags].
    """
    if not len(scores):
        return []
    inside = np.arange(2, scores.shape[1], 2)
    total = scores[0].copy()
    total[inside] = -np.inf
    came_from = np.empty(scores.shape, dtype=np.int64)
    for i in range(1, len(scores)):
        best = int(total.argmax())
        came_from[i] = best
        came_from[i, inside] = np.where(total[inside - 1] >= total[inside], inside - 1, inside)
        total = total[came_from[i]] + scores[i]
    tags = [int(total.argmax())]
    for i in range(len(scores) - 1, 0, -1):
        tags.append(int(came_from[i, tags[-1]]))
    return tags[::-1]


def _extent(places: Places, own: Sequence[int]) -> tuple[int, int]:
    given = [place for i in own if (place := places[i]) is not None]
    return min(start for start, _ in given), max(end for _, end in given)
