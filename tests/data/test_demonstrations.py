"""Which examples are shown solved: those of the first texts by hash, each text once."""

from __future__ import annotations

from helpers import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_core.data.demonstrations import fair_draw

pairs = st.lists(st.tuples(st.sampled_from(["one", "two", "three", "four", "five"]), st.text("xyz", min_size=1, max_size=2)), unique=True)


@given(pairs, st.integers(0, 6), st.integers(0, 9))
@settings(deadline=None)
def test_every_text_is_drawn_once_whatever_the_order_of_the_rows(rows: list[tuple[str, str]], count: int, seed: int) -> None:
    frame = examples(*rows)
    drawn = fair_draw(frame, count)
    assert drawn["_id"].to_list() == sorted(set(frame["_id"]))[:count]
    assert set(drawn.rows()) <= set(frame.rows())
    assert fair_draw(frame.sample(fraction=1.0, shuffle=True, seed=seed), count).equals(drawn)
