"""Metadata that the UI can show: small enough for the event log, and in place where there is a limit."""

import pytest

from pipelines.metadata import sketch, table


@pytest.mark.parametrize("steps", [1, 8, 80, 5000])
def test_a_sketch_of_the_loss_is_short_enough_to_be_shown_in_place(steps: int) -> None:
    validation = [(step, 3.0 - step / steps) for step in range(1, steps + 1)]
    assert len(sketch([4.0 + step / steps for step in range(steps)], validation).md_str) < 1000


def test_a_loss_that_never_changes_can_be_sketched() -> None:
    assert "polyline" in sketch([0.5, 0.5], []).md_str


def test_long_texts_are_cut_in_tables() -> None:
    (record,) = table([{"text": "a" * 5000, "rows": 3}]).records
    assert len(record.data["text"]) == 600 and record.data["text"].endswith("…")
    assert record.data["rows"] == 3
