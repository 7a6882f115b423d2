"""Entities and their JSON: read in two forms, written in one, and moved with a text that cleaning changes."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_core.extraction.spans import Entity, entities_json, entity_labels, moved, parse_entities

TEXT = "Lyon and Oslo, then Lyon"


@st.composite
def texts_with_entities(draw: st.DrawFn, alphabet: str | None = None) -> tuple[str, list[Entity]]:
    """Words with spaces between them, some of the runs of words an entity."""
    words = draw(st.lists(st.text(alphabet or st.characters(codec="utf-8"), min_size=1, max_size=4).filter(_has_no_space), min_size=1))
    text, entities = draw(st.sampled_from(["", "  "])), list[Entity]()
    for number, word in enumerate(words):
        start = len(text)
        text += word
        if draw(st.booleans()):
            entities.append(Entity(start, len(text), draw(st.sampled_from(["city", "date"]))))
        text += draw(st.sampled_from([" ", "\n"])) if number + 1 < len(words) else ""
    return text, entities


def _has_no_space(word: str) -> bool:
    return not any(character.isspace() for character in word) and not unicodedata.combining(word[0])


@given(texts_with_entities())
def test_what_is_written_is_read_back(example: tuple[str, list[Entity]]) -> None:
    text, entities = example
    written = entities_json(reversed(entities), text)
    assert parse_entities(written, text) == entities
    assert entity_labels([written]) == {entity.label for entity in entities}


@given(texts_with_entities("ex\u00e9\u00f4\u00f1\uac00"))
def test_entities_move_with_a_text_that_is_composed_and_stripped(example: tuple[str, list[Entity]]) -> None:
    raw, entities = example
    raw_decomposed = unicodedata.normalize("NFD", raw)
    places = [len(unicodedata.normalize("NFD", raw[:i])) for i in range(len(raw) + 1)]
    given_entities = [Entity(places[e.start], places[e.end], e.label) for e in entities]
    plain = unicodedata.normalize("NFC", raw).strip()
    found = moved(given_entities, raw_decomposed, plain)
    words = [unicodedata.normalize("NFC", raw[e.start : e.end]) for e in entities]
    assert [plain[e.start : e.end] for e in found] == words
    assert [e.label for e in found] == [e.label for e in entities]


def test_an_entity_that_ends_between_a_letter_and_its_accent_keeps_the_letter() -> None:
    assert moved([Entity(1, 5, "x")], " cafe\u0301 ", "café") == [Entity(0, 4, "x")]


def test_entities_given_by_their_text_are_found_in_order() -> None:
    found = parse_entities('[{"text": "Lyon", "label": "city"}, {"text": "Lyon", "label": "city"}]', TEXT)
    assert found == [Entity(0, 4, "city"), Entity(20, 24, "city")]
    assert parse_entities('[{"start": null, "end": null, "text": "Oslo", "label": " city "}]', TEXT) == [Entity(9, 13, "city")]
    assert parse_entities("[]", TEXT) == []


def test_whitespace_at_the_ends_of_an_entity_is_not_part_of_it() -> None:
    assert parse_entities('[{"start": 4, "end": 14, "label": "x"}]', TEXT) == [Entity(5, 14, "x")]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("Lyon", "is not JSON (Expecting value at character 0)"),
        ('{"start": 0}', 'holds dict, not a list like [{"start": 0, "end": 5, "label": "city"}]'),
        ("[3]", "entity 1 is 3, not an object with start, end and label"),
        ('[{"start": 0, "end": 4, "lable": "x"}]', 'entity 1 has the unknown key "lable"; Did you mean "label"?'),
        ('[{"start": 0, "end": 4}]', "entity 1 has no label"),
        ('[{"start": 0, "end": 4, "label": " "}]', "entity 1 has no label"),
        ('[{"start": 0, "label": "x"}]', "entity 1 needs start and end, both whole numbers; found 0 and None"),
        ('[{"start": true, "end": 4, "label": "x"}]', "entity 1 needs start and end, both whole numbers; found True and 4"),
        ('[{"start": 20, "end": 25, "label": "x"}]', "entity 1 goes from 20 to 25, outside of its text of 24 characters"),
        ('[{"start": 4, "end": 4, "label": "x"}]', "entity 1 goes from 4 to 4"),
        ('[{"start": -4, "end": 4, "label": "x"}]', "entity 1 goes from -4 to 4"),
        ('[{"start": 4, "end": 5, "label": "x"}]', "entity 1 is whitespace alone"),
        ('[{"start": 0, "end": 4, "text": "Oslo", "label": "x"}]', 'entity 1 says "Oslo", but characters 0 to 4 are "Lyon"'),
        ('[{"text": "Rome", "label": "x"}]', 'entity 1 is "Rome", which is not in the text'),
        (
            '[{"text": "Oslo", "label": "x"}, {"text": "Oslo", "label": "x"}]',
            'entity 2 is "Oslo", which is not in the text after character 13',
        ),
        ('[{"label": "x"}]', "entity 1 has neither start and end nor a text"),
        (
            '[{"start": 5, "end": 13, "label": "y"}, {"start": 0, "end": 8, "label": "x"}]',
            'has entities that overlap, "Lyon and" (0 to 8, x) and "and Oslo" (5 to 13, y)',
        ),
    ],
)
def test_a_list_that_is_not_of_this_text_is_refused_with_the_reason(target: str, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        parse_entities(target, TEXT)
