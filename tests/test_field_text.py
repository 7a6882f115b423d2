"""One spelling of a field: what is tuned on, evaluated, predicted from files and from Python is the same text."""

from __future__ import annotations

import json
import math
import unicodedata
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from helpers import a_task

from prompt_core.backbone import Backbone
from prompt_core.batch.reading import read_chunks
from prompt_core.data import clean, read_examples
from prompt_core.encoding import TaskEncoding
from prompt_core.field_text import as_text, as_texts, is_absent
from prompt_core.inputs import read_input

FIELDS = ("text", "flag", "price", "whole", "items", "small", "day", "moment", "hour", "span", "exact")
ROWS: list[dict[str, Any]] = [
    {
        "text": f"  Une cafe\u0301 number {i}? \n",
        "flag": bool(i % 2),
        "price": (1000.0, 1e18, 0.1, 1e-7)[i],
        "whole": i if i % 2 else None,
        "items": {"b": [1000.0, "caf\u00e9\n", None, True, {}], "a": i},
        "small": (0.1, 16777216.0, 1e20, -0.0)[i],
        "day": date(2024, 1, 1 + i),
        "moment": datetime(2024, 1, 1 + i, 3),
        "hour": time(1, i),
        "span": timedelta(seconds=i),
        "exact": Decimal("1.50") + i,
        "label": "ab"[i % 2],
    }
    for i in range(4)
]


def write(path: Path) -> set[str]:
    """The rows in a file; the fields that it can hold."""
    json_fields = {"text", "flag", "price", "items", "label"}
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({name: row[name] for name in row if name in json_fields}) + "\n" for row in ROWS))
        return json_fields
    frame = pl.DataFrame([{name: value for name, value in row.items() if name != "items"} for row in ROWS]).with_columns(
        pl.col("small").cast(pl.Float32), pl.col("moment").cast(pl.Datetime("ms"))
    )
    frame = frame.with_columns(pl.col("whole").fill_null(7))
    if path.suffix == ".csv":
        frame.drop("span").write_csv(path)
        return set(frame.columns) - {"span"}
    frame.write_parquet(path)
    return set(frame.columns)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_the_model_reads_a_row_of_a_file_as_it_was_evaluated(tmp_path: Path, llama: Backbone, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    fields = [name for name in FIELDS if name in write(path)]
    template = " ".join(f"{{{{ {name} }}}}" for name in fields)
    task = a_task(
        llama.identity.name, template=template, folder=tmp_path, data={"path": path.name, "target": "label", "near_duplicate": 1.0}
    )
    evaluated = clean(read_examples(task), task)[0].select(fields).rows(named=True)
    given = [row for chunk in read_chunks(path, 3) for row in chunk.rows]
    served = [read_input(row, fields) for row in given]
    assert [{name: row[name] for name in fields} for row in served] == evaluated
    encoding = TaskEncoding(task, llama)
    assert [encoding.encode(row) for row in served] == [encoding.encode(row) for row in evaluated]
    assert served[0]["text"] == "Une caf\u00e9 number 0?"
    if kind == "parquet":
        frame = pl.read_parquet(path)
        python = [read_input(row, fields) for row in frame.drop("small", "moment").rows(named=True)]  # these have no type in Python
        assert [row["price"] for row in python] == ["1000", "1000000000000000000", "0.1", "0.0000001"]
        assert all(row[name] == of[name] for row, of in zip(python, evaluated, strict=True) for name in row if name in of)
        assert [row["small"] for row in evaluated] == ["0.1", "16777216", "100000000000000000000", "-0"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (np.bool_(False), "false"),
        (np.float64(2), "2"),
        ([math.nan], "[NaN]"),
        (-math.inf, "-inf"),
        (2**70, str(2**70)),
        ((1, [2.0, "\u00e9"], None), '[1, [2, "\u00e9"], null]'),
        ({"a": {"when": date(2024, 1, 2)}}, '{"a": {"when": "2024-01-02"}}'),
        (" \u1112\u1161\u11ab\t", "\ud55c"),
    ],
)
def test_a_value_of_python_is_written_like_that_of_a_file(value: Any, text: str) -> None:
    assert as_text(value) == text


def endless() -> list[Any]:
    rows: list[Any] = []
    rows.append(rows)
    return rows


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("cut \ud83d", "is not Unicode text"),
        ({"a": ["\ud83d"]}, "is not Unicode text"),
        (b"bytes", "is bytes, not text"),
        (endless(), "is nested too deeply"),
        ("e" + "\u0301\u0323" * 100_000, "combining marks in a row"),  # would take minutes to put in order
    ],
)
def test_what_is_no_text_is_refused(value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        as_text(value)


def test_columns_are_spelled_as_their_values_are() -> None:
    values = [1000.0, 1e300, 5e-324, -0.0, 1 / 3, None, math.nan]
    assert as_texts(pl.Series(values)).to_list() == [None if is_absent(value) else as_text(value) for value in values]
    assert unicodedata.is_normalized("NFC", as_text("e\u0301"))
