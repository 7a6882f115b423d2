"""Entities as character spans of a text, and the JSON that they are given and returned as."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from prompt_core.errors import nearest
from prompt_core.extraction.schema import parse_json

_KEYS = ("start", "end", "label", "text")


@dataclass(frozen=True, order=True)
class Entity:
    """Characters `start` to `end` - 1 of a text (code points, from 0) and what they are."""

    start: int
    end: int
    label: str


def parse_entities(target: str, text: str) -> list[Entity]:
    """The entities that a JSON list names, in the order of the text, without whitespace at their ends.

    Args:
        target: a list of `{"start", "end", "label"}`, with or without the `text` between them; or of `{"text", "label"}`,
            each found behind the one before it.
        text: what they are entities of.

    Raises:
        ValueError: it is no such list, an entity is not in the text, or two overlap; the message is the reason.
    """
    items = parse_json(target)
    if not isinstance(items, list):
        raise ValueError(f'holds {type(items).__name__}, not a list like [{{"start": 0, "end": 5, "label": "city"}}]')
    entities: list[Entity] = []
    behind = 0
    for number, item in enumerate(items, 1):
        entity = _entity(item, text, behind, f"entity {number}")
        behind = entity.end if item.get("start") is None else behind
        entities.append(entity)
    entities.sort()
    for before, after in pairwise(entities):
        if after.start < before.end:
            named = [f'"{text[e.start : e.end]}" ({e.start} to {e.end}, {e.label})' for e in (before, after)]
            raise ValueError(f"has entities that overlap, {named[0]} and {named[1]}")
    return entities


def entities_json(entities: Iterable[Entity], text: str) -> str:
    """The one form in which entities are kept, compared and returned; `parse_entities` reads it."""
    listed = [{"start": e.start, "end": e.end, "label": e.label, "text": text[e.start : e.end]} for e in sorted(entities)]
    return json.dumps(listed, ensure_ascii=False)


def entity_labels(targets: Iterable[str]) -> set[str]:
    """All labels in targets of the form of `entities_json`."""
    return {item["label"] for target in targets for item in json.loads(target)}


def moved(entities: Sequence[Entity], raw: str, plain: str) -> list[Entity]:
    """Where entities of a text stand once cleaning has made it `plain`: in Unicode NFC, without outer whitespace.

    A span that ends between a letter and its accent is rounded outwards.
    """
    composed = unicodedata.normalize("NFC", raw)
    leading = len(composed) - len(composed.lstrip())
    found: list[Entity] = []
    for entity in entities:
        start = _composed_place(raw, composed, entity.start, -1) - leading
        end = _composed_place(raw, composed, entity.end, 1) - leading
        found.append(Entity(max(start, found[-1].end if found else 0), min(end, len(plain)), entity.label))
    return found


def _entity(item: Any, text: str, behind: int, name: str) -> Entity:
    if not isinstance(item, dict):
        raise ValueError(f"{name} is {json.dumps(item, ensure_ascii=False)}, not an object with start, end and label")
    if unknown := [key for key in item if key not in _KEYS]:
        raise ValueError(f'{name} has the unknown key "{unknown[0]}"; {nearest(unknown[0], _KEYS)}'.rstrip("."))
    item = {key: value for key, value in item.items() if value is not None}  # a table has a cell for every key
    label = item.get("label")
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"{name} has no label")
    start, end = _given_place(item, text, name) if "start" in item or "end" in item else _found_place(item, text, behind, name)
    within = text[start:end]
    start, end = start + len(within) - len(within.lstrip()), end - len(within) + len(within.rstrip())
    if start >= end:
        raise ValueError(f"{name} is whitespace alone")
    return Entity(start, end, unicodedata.normalize("NFC", label.strip()))


def _given_place(item: dict[str, Any], text: str, name: str) -> tuple[int, int]:
    start, end = item.get("start"), item.get("end")
    if type(start) is not int or type(end) is not int:  # a bool is no place
        raise ValueError(f"{name} needs start and end, both whole numbers; found {start!r} and {end!r}")
    if not 0 <= start < end <= len(text):
        raise ValueError(f"{name} goes from {start} to {end}, outside of its text of {len(text)} characters")
    if "text" in item and item["text"] != text[start:end]:
        raise ValueError(f'{name} says "{item["text"]}", but characters {start} to {end} are "{text[start:end]}"')
    return start, end


def _found_place(item: dict[str, Any], text: str, behind: int, name: str) -> tuple[int, int]:
    wanted = item.get("text")
    if not isinstance(wanted, str) or not wanted:
        raise ValueError(f"{name} has neither start and end nor a text")
    start = text.find(wanted, behind)
    if start < 0:
        raise ValueError(f'{name} is "{wanted}", which is not in the text' + (f" after character {behind}" if behind else ""))
    return start, start + len(wanted)


def _composed_place(raw: str, composed: str, place: int, step: int) -> int:
    """The place in the composed text of a place in the raw one, or of the next one outwards where it has none."""
    while True:
        before = unicodedata.normalize("NFC", raw[:place])
        if place in (0, len(raw)) or before + unicodedata.normalize("NFC", raw[place:]) == composed:
            return len(before)
        place += step
