"""Inputs that came after tuning: read as the examples are, so that a file has not drifted from itself, or one line says what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from data_builders import a_task

from prompt_core import PromptmillError
from prompt_core.data import clean, read_examples
from prompt_core.data.drift import Drift, drift, profile_of
from prompt_core.data.read import read_inputs
from prompt_core.task_file import parse_task


def as_csv(rows: list[dict[str, Any]], folder: Path) -> Path:
    pl.DataFrame(rows).select(pl.all().cast(pl.String)).write_csv(folder / "a.csv")
    return folder / "a.csv"


def as_jsonl(rows: list[dict[str, Any]], folder: Path) -> Path:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder / "a.jsonl"


def as_parquet(rows: list[dict[str, Any]], folder: Path) -> Path:
    pl.DataFrame(rows).write_parquet(folder / "a.parquet")
    return folder / "a.parquet"


def of_itself(tmp_path: Path, path: Path, template: str = "{{ text }}") -> Drift:
    """The drift of the file that a prompt was tuned on."""
    task = a_task(tmp_path, path=path.name, template=template, near_duplicate=1)
    examples, _ = clean(read_examples(task), task)
    return drift(profile_of(examples, task), read_inputs(task, str(path), "FILE"), task)


def measures(found: Drift) -> dict[str, float]:
    return {shift.measure: shift.psi for shift in found.shifts}


def labelled(labels: list[Any], **more: list[Any]) -> list[dict[str, Any]]:
    rows = [{"text": f"message {i} of {i * 7919 % 1000} about {'ab'[i % 2] * (i % 9 + 1)}"} for i in range(120)]
    return [
        row | {"label": labels[i % len(labels)]} | {name: values[i % len(values)] for name, values in more.items()}
        for i, row in enumerate(rows)
    ]


Write = Callable[[list[dict[str, Any]], Path], Path]


@pytest.mark.parametrize("labels", [["007", "1", "1.0"], ["true", "false"], ["spam ", "ham"]])
@pytest.mark.parametrize("write", [as_csv, as_jsonl, as_parquet])
def test_labels_are_those_that_a_prompt_was_tuned_on(tmp_path: Path, write: Write, labels: list[str]) -> None:
    assert measures(of_itself(tmp_path, write(labelled(labels), tmp_path)))["labels"] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("labels", [[True, False], [1, 2], [1.0, 2.5]])
@pytest.mark.parametrize("write", [as_jsonl, as_parquet])
def test_labels_that_are_no_texts_are_those_too(tmp_path: Path, write: Write, labels: list[Any]) -> None:
    assert measures(of_itself(tmp_path, write(labelled(labels), tmp_path)))["labels"] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("write", [as_jsonl, as_parquet])
def test_fields_that_are_no_texts_are_as_long_as_they_were(tmp_path: Path, write: Write) -> None:
    rows = labelled(["x", "y"], amount=[1000.0, 2.0, 3.5], paid=[True, False])
    found = measures(of_itself(tmp_path, write(rows, tmp_path), "amount {{ amount }} paid {{ paid }} {{ text }}"))
    assert found["length"] == pytest.approx(0, abs=0.01) and found["vocabulary"] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("write", [as_csv, as_jsonl, as_parquet])
def test_rows_without_a_label_are_no_label(tmp_path: Path, write: Write) -> None:
    task = a_task(tmp_path)
    profile = profile_of(pl.DataFrame(labelled(["x", "y"])), task)

    def found(labels: list[Any], **more: list[Any]) -> dict[str, float]:
        return measures(drift(profile, read_inputs(task, str(write(labelled(labels, **more), tmp_path)), "FILE"), task))

    assert "labels" not in found([""])
    assert "labels" not in found([None, " "])
    assert found(["x", "y", None])["labels"] == pytest.approx(0, abs=0.02)
    assert found([""], prediction=["x", "y"])["labels"] == 0


def test_columns_that_are_not_used_may_hold_anything(tmp_path: Path) -> None:
    path = as_jsonl([*labelled(["x", "y"], extra=[1]), *({"text": "b", "extra": extra} for extra in ("x", [1], {"a": 1}))], tmp_path)
    assert len(read_inputs(a_task(tmp_path), str(path), "FILE")) == 123
    with pytest.raises(PromptmillError, match=r'column "txt" is not in .*a.jsonl \(columns: text, label, extra\)'):
        read_inputs(a_task(tmp_path, template="{{ txt }}"), str(path), "FILE")


@pytest.mark.parametrize("write", [as_jsonl, as_parquet])
def test_inputs_of_an_extraction_need_no_target(tmp_path: Path, write: Write) -> None:
    data, schema = {"path": "a.jsonl", "target": "label"}, {"type": "object", "properties": {"who": {"type": "string"}}}
    content = {"name": "t", "backbone": "smollm2", "objective": "extract", "template": "{{ text }}\n", "data": data}
    task = parse_task(content | {"extract": {"schema": schema}}, "t.yaml", tmp_path)
    assert read_inputs(task, str(write([{"text": "a"}], tmp_path)), "FILE").columns == ["text"]


@pytest.mark.parametrize(
    ("name", "content", "finding"),
    [
        ("a.csv", b'text;stars\n"a, b";1\n', "line 2: .* Its columns look separated by ';'; Promptmill reads commas"),
        ("a.csv", b"text;stars\na, b;1\n", "line 2: .* Its columns look separated by ';'; Promptmill reads commas"),
        ("a.csv", b"text,stars\na,b,1\n", "line 2: has 3 fields, the header 2. Put a text with commas"),
        ("a.csv", "text\nschön\n".encode("latin-1"), r"line 2: byte \d+ \(0xf6\) is not UTF-8"),
        ("a.csv", b"", "the file is empty"),
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2: is not JSON"),
        ("a.parquet", b"PAR1 and no end", "cannot be read"),
        ("a.xlsx", b"", r'FILE: ".*a.xlsx" ends in ".xlsx". Promptmill reads .csv'),
    ],
)
def test_a_malformed_file_is_named_with_its_line_and_what_to_do(tmp_path: Path, name: str, content: bytes, finding: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptmillError, match=finding):
        read_inputs(a_task(tmp_path), str(tmp_path / name), "FILE")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PromptmillError, match=r'FILE: there is no file ".*none\.csv"'):
        read_inputs(a_task(tmp_path), str(tmp_path / "none.csv"), "FILE")
