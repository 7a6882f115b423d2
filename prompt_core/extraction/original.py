"""Places in the text that the model read as places in the text as it was given."""

from __future__ import annotations

import unicodedata
from dataclasses import replace

from prompt_core.encoded import Located


def in_original(example: Located, raw: str) -> Located:
    """An input located in `raw`, of which it has read `normalised(raw)`: its places and window count the characters of `raw`.

    What is one character for the model and several in `raw`, like a letter and its accent, is taken as a whole.
    """
    if raw == example.text:
        return example
    spans = _spans(raw)
    first, last = example.window
    window = (spans[first][0] if first else 0, spans[last - 1][1] if last < len(example.text) else len(raw))
    places = tuple(place and (spans[place[0]][0], spans[place[1] - 1][1]) for place in example.places)
    return replace(example, text=raw, places=places, window=window)


def _spans(raw: str) -> list[tuple[int, int]]:
    """The characters [start, end) of `raw` that each character of `normalised(raw)` stands for."""
    composed = unicodedata.normalize("NFC", raw)
    found: list[tuple[int, int]] = []
    for start, end in _clusters(raw, composed):
        own = unicodedata.normalize("NFC", raw[start:end])
        found += [(start + i, start + i + 1) for i in range(len(own))] if own == raw[start:end] else [(start, end)] * len(own)
    leading = len(composed) - len(composed.lstrip())
    return found[leading : leading + len(composed.strip())]


def _clusters(raw: str, composed: str) -> list[tuple[int, int]]:
    """`raw` in parts [start, end) that compose each by itself; as a whole where it is composed already."""
    if raw == composed:
        return [(0, len(raw))]
    starts, joined = [0], ""
    for place, letter in enumerate(raw[1:], 1):
        if unicodedata.combining(letter):
            continue
        before = raw[starts[-1] : place]
        own = unicodedata.normalize("NFC", before)
        if letter.isascii() or unicodedata.normalize("NFC", before + letter) == own + unicodedata.normalize("NFC", letter):
            starts.append(place)
            joined += own
    parts = list(zip(starts, [*starts[1:], len(raw)], strict=True))
    return parts if joined + unicodedata.normalize("NFC", raw[starts[-1] :]) == composed else [(0, len(raw))]
