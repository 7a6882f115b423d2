"""BIO tags: spans to tags and back, the strict reading of seqeval, and the best of all valid sequences."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from seqeval.scheme import IOB2, Entities

from prompt_core.extraction.spans import Entity
from prompt_core.extraction.tags import IGNORED, OUTSIDE, best_tags, entities_of, num_tags, tag_entities

LABELS = ("city", "date")
NAMES = ["O", "B-city", "I-city", "B-date", "I-date"]
Place = tuple[int, int]


@st.composite
def tokens(draw: st.DrawFn) -> list[Place]:
    """Characters of each token, with gaps between some."""
    places, at = list[Place](), 0
    for length, gap in draw(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 1)), min_size=1, max_size=10)):
        places.append((at + gap, at + gap + length))
        at += gap + length
    return places


@st.composite
def spans(draw: st.DrawFn, end: int) -> list[Entity]:
    """Entities anywhere, none overlapping."""
    bounds = sorted(draw(st.sets(st.integers(0, end), max_size=8)))
    pairs = zip(bounds[::2], bounds[1::2], strict=False)
    return [Entity(a, b, draw(st.sampled_from(LABELS))) for a, b in pairs]


@given(places=tokens(), data=st.data())
def test_entities_of_whole_tokens_come_back(places: list[Place], data: st.DataObject) -> None:
    runs = sorted(data.draw(st.sets(st.integers(0, len(places)), max_size=6)))
    entities = [Entity(places[a][0], places[b - 1][1], data.draw(st.sampled_from(LABELS))) for a, b in pairwise(runs)]
    found = tag_entities(entities, places, (0, places[-1][1]), LABELS)
    assert entities_of(found.tags, places, LABELS) == entities
    assert (found.rounded, found.lost) == (0, 0)


@given(places=tokens(), data=st.data())
def test_entities_that_cut_a_token_grow_to_all_of_it_and_are_counted(places: list[Place], data: st.DataObject) -> None:
    entities = data.draw(spans(places[-1][1]))
    found = tag_entities(entities, places, (0, places[-1][1]), LABELS)
    back = entities_of(found.tags, places, LABELS)
    assert len(back) == len(entities) - found.lost
    # A token belongs to the first entity that it is part of; what the later ones have of it is not theirs.
    characters = {i for start, end in places for i in range(start, end)}
    taken: set[int] = set()
    kept: list[set[int]] = []
    for entity in entities:
        own = {i for a, b in places if a < entity.end and entity.start < b for i in range(a, b)} - taken
        taken |= own
        kept += [own] if own else []
    assert [set(range(e.start, e.end)) & characters for e in back] == kept
    held = [e for e in entities if any(a < e.end and e.start < b for a, b in places)]
    assert found.rounded >= sum(e not in back for e in held) - found.lost


def test_an_entity_that_is_cut_is_lost_as_a_whole_and_teaches_nothing() -> None:
    places = [None, (0, 4), (5, 8), (9, 13), None]
    found = tag_entities([Entity(0, 4, "city"), Entity(5, 20, "date"), Entity(30, 34, "city")], places, (0, 13), LABELS)
    assert found.tags == (IGNORED, 1, IGNORED, IGNORED, IGNORED)
    assert (found.rounded, found.lost) == (0, 2)


def test_entities_side_by_side_stay_two() -> None:
    places = [(0, 2), (2, 4), (4, 6)]
    found = tag_entities([Entity(0, 2, "city"), Entity(2, 6, "city")], places, (0, 6), LABELS)
    assert found.tags == (1, 1, 2)
    assert entities_of(found.tags, places, LABELS) == [Entity(0, 2, "city"), Entity(2, 6, "city")]


def test_two_entities_in_the_bytes_of_one_character_are_the_first_of_them() -> None:
    assert entities_of([1, 3, 4], [(0, 1), (0, 1), (1, 2)], LABELS) == [Entity(0, 1, "city")]
    assert entities_of([1, 2, 3], [(0, 1), (0, 1), (1, 2)], LABELS) == [Entity(0, 1, "city"), Entity(1, 2, "date")]


@given(st.lists(st.integers(0, 4), max_size=12))
def test_any_tags_are_read_as_seqeval_reads_them_strictly(tags: list[int]) -> None:
    (expected,) = Entities([[NAMES[tag] for tag in tags]], IOB2).entities if tags else [[]]
    found = entities_of(tags, [(i, i + 1) for i in range(len(tags))], LABELS)
    assert [(e.start, e.end, e.label) for e in found] == [(e.start, e.end, e.tag) for e in expected]


@given(st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_the_best_tags_are_the_best_of_all_valid_sequences(length: int, seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=(length, num_tags(LABELS)))

    def is_valid(tags: tuple[int, ...]) -> bool:
        return all(tag == OUTSIDE or tag % 2 or before in (tag - 1, tag) for before, tag in zip((OUTSIDE, *tags), tags, strict=False))

    def total(tags: tuple[int, ...]) -> float:
        return float(sum(scores[i, tag] for i, tag in enumerate(tags)))

    best = max(filter(is_valid, product(range(5), repeat=length)), key=total)
    assert best_tags(scores) == list(best)
