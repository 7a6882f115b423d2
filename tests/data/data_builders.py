"""Builders for the tests of prompt_core.data: task files as dictionaries, frames as lists, and the folder of real sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from prompt_core.data.clean import example_id
from prompt_core.task import TaskSpec
from prompt_core.task_file import parse_task

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real data sets are not at {SHARED}")


def a_task(
    folder: Path = Path(),
    *,
    objective: str = "classify",
    template: str = "{{ text }}",
    evaluate: Any = None,
    labels: Any = None,
    **data: Any,
) -> TaskSpec:
    """A task `t` over examples.csv with the columns text and label, changed by keywords of its data section."""
    content = {
        "name": "t",
        "backbone": "minilm",
        "objective": objective,
        "template": template,
        "data": {"path": "examples.csv", "target": "label", **data},
        "evaluate": evaluate or {},
        "labels": labels or {},
    }
    return parse_task(content, "t.yaml", folder)


def rows(*pairs: tuple[str | None, str | None]) -> pl.DataFrame:
    """(text, label) pairs as `read_examples` returns them."""
    return pl.DataFrame(pairs, schema={"text": pl.String, "label": pl.String}, orient="row")


def with_ids(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame as if cleaned, with ids by its column `text`."""
    return frame.select(pl.Series("_id", [example_id([text]) for text in frame["text"]], dtype=pl.String), pl.all())
