"""Places in a text that was normalised are places in the text that was given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompt_core.encoded import Located
from prompt_core.extraction.original import in_original
from prompt_core.field_text import normalised

LETTERS = "ae \t\u0301\u0323\u0344\u00e9\u1112\u1161\u11ab\u09c7\u09be\u0f73\u0f71\ufb01x"


def by_letter(raw: str, window: tuple[int, int] | None = None) -> Located:
    """The normalised text with a token for each of its characters."""
    text = normalised(raw)
    return Located((), (), window is not None, text, tuple((i, i + 1) for i in range(len(text))), window or (0, len(text)))


@pytest.mark.parametrize(
    ("raw", "parts"),
    [
        ("plain", list("plain")),
        (" \n in \t", ["i", "n"]),
        (" Cafe\u0301 x", ["C", "a", "f", "e\u0301", " ", "x"]),
        ("\u1112\u1161\u11ab!", ["\u1112\u1161\u11ab", "!"]),
        ("q\u0301\u0323", ["q\u0301\u0323"] * 3),  # put in another order: nothing in it stands alone
    ],
)
def test_each_character_is_found_where_it_was(raw: str, parts: list[str]) -> None:
    found = in_original(by_letter(raw), raw)
    assert found.text == raw and found.window == (0, len(raw))
    assert [raw[place[0] : place[1]] for place in found.places if place] == parts


def test_a_cut_is_where_it_was_and_a_text_that_is_whole_is_not_cut() -> None:
    assert in_original(by_letter("  abcdef ", window=(2, 4)), "  abcdef ").window == (4, 6)
    assert in_original(by_letter("  abcdef ", window=(0, 4)), "  abcdef ").window == (0, 6)  # nothing that was read was cut in front
    assert in_original(by_letter("  abcdef ", window=(2, 6)), "  abcdef ").window == (4, 9)


@given(st.text(LETTERS, max_size=12).filter(str.strip))
def test_places_are_in_order_and_mean_what_the_model_read(raw: str) -> None:
    example = by_letter(raw)
    places = [place for place in in_original(example, raw).places if place]
    assert len(places) == len(example.text) and places == sorted(places)
    assert normalised("".join(raw[start:end] for start, end in dict.fromkeys(places))) == example.text
