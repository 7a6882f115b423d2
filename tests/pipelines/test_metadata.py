"""Metadata that the UI can show: small enough for the event log, and in place where there is a limit."""

from pathlib import Path

import polars as pl
import pytest
from deployment import a_deployment, write_task

from pipelines.metadata import baselines_metadata, sketch, table
from prompt_core import load_task
from prompt_core.data import Splits
from prompt_core.evaluation import Contender


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


def test_answers_stand_beside_the_inputs_that_they_are_for_where_a_text_has_several_targets(tmp_path: Path) -> None:
    task = load_task(write_task(a_deployment(tmp_path / "d"), "a", backbone="smollm2", objective="generate", labels={}))
    rows = [(text, text, f"target {number} of {text}") for text in "abc" for number in range(4)]
    test = pl.DataFrame(rows, schema=["_id", "text", "label"], orient="row")
    contender = Contender("zero_shot", "untuned", [f"answer to {text}" for text in "abc"])
    shown = baselines_metadata([contender], task, Splits(test.clear(), test.clear(), test), known=False)["samples"].records
    assert [record.data for record in shown] == [{"zero_shot": f"answer to {text}", "wanted": f"target 0 of {text}"} for text in "abc"]
