"""Reading examples and inputs: a CSV, JSONL or Parquet file becomes a frame of the columns that a task needs, all strings."""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import polars as pl

from prompt_core.data.address import hide_access
from prompt_core.data.columns import nearest_column
from prompt_core.data.malformed import check_bytes, explain_line
from prompt_core.errors import PromptmillError, kind_of_fault, listed, nearest
from prompt_core.field_text import as_texts, normalised
from prompt_core.task import TaskSpec
from prompt_core.template import Template

PREDICTION = "prediction"  # the column that `promptmill predict` adds
_MARK = "\ufeff"
SUFFIXES = (".csv", ".jsonl", ".ndjson", ".parquet")


def read_examples(task: TaskSpec, path: str | None = None) -> pl.DataFrame:
    """The examples of a task as they stand in the file.

    Args:
        task: names the columns: the template's fields, those of `evaluate` and `data.target`.
        path: a local path or any URL that polars scans; default `data.path`, from the task file's folder.

    Returns:
        One row per example in file order; the columns above in that order, all String. An absent value is null. Without
        a path, the questions that the model asks itself (`distill.questions`).

    Raises:
        Unreachable: the file cannot be read for a fault of disk or network.
        PromptmillError: it is missing, empty, malformed, not UTF-8 or of an unknown kind, or lacks a column.
    """
    if path is None and not task.data.path:
        from prompt_core.selfstudy import own_questions  # torch loads where a model is needed

        return own_questions(task)
    source = task.locate(task.data.path) if path is None else path
    test_source = task.locate(task.data.test_path) if task.data.test_path else None
    where = f"task {task.name}: {'data.test_path' if path is not None and path == test_source else 'data.path'}"
    return _read(task, source, where, needed_columns(task))


def read_unlabelled(task: TaskSpec) -> pl.DataFrame:
    """The inputs of `data.unlabelled`, those with an empty field left out.

    Returns:
        One row per input in file order, the template's fields as String columns in Unicode NFC without outer whitespace; no
        row where the task names no file.

    Raises:
        PromptmillError: as `read_examples`, and where no input is left.
    """
    fields = dict.fromkeys(Template(task).fields, "template")
    if task.data.unlabelled is None:
        return pl.DataFrame(schema=dict.fromkeys(fields, pl.String))
    where = f"task {task.name}: data.unlabelled"
    frame = _read(task, task.locate(task.data.unlabelled), where, fields)
    frame = frame.select(pl.Series(name, [normalised(value or "") for value in frame[name]], dtype=pl.String) for name in fields)
    frame = frame.filter(pl.all_horizontal(pl.all() != ""))
    if frame.is_empty():
        raise PromptmillError(where, "every row has an empty field", "Fill them in.")
    return frame


def read_inputs(task: TaskSpec, source: str, where: str) -> pl.DataFrame:
    """Inputs that came after tuning, spelled as the examples are.

    Args:
        source: a local path or any URL that polars scans.
        where: names what gives the source in errors.

    Returns:
        One row per input in file order; the template's fields and, for a classification, those of `data.target` and `prediction` that
        the file has, all String. An absent value is null; so is all of a label column that a JSONL file has not.

    Raises:
        PromptmillError: as `read_examples`.
    """
    labels = (task.data.target, PREDICTION) if task.objective == "classify" else ()
    return _read(task, source, where, dict.fromkeys(Template(task).fields, "template"), labels)


def as_strings(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """The columns as texts, spelled as the examples are; `source` names the frame in errors.

    Raises:
        PromptmillError: a column holds lists, objects or bytes.
    """
    for name, dtype in frame.schema.items():
        if dtype.is_nested() or dtype == pl.Binary:
            raise PromptmillError(f"{source}: {name}", f"the column holds {dtype}, not text", "Write each value as one text.")
    return frame.select(as_texts(column) for column in frame)


def _read(task: TaskSpec, source: str, where: str, needed: dict[str, str], also: tuple[str, ...] = ()) -> pl.DataFrame:
    """The needed columns of a file, and those of `also` that it has.

    `where` names the file in errors, and each needed column comes with the field that asks for it.
    """
    local, shown = _local_file(source, where), hide_access(source, source)
    suffix = Path(urlsplit(source).path if local is None else local).suffix.lower()
    if suffix not in SUFFIXES:
        raise PromptmillError(where, f'"{shown}" ends in "{suffix}"', f"Promptmill reads {', '.join(SUFFIXES)}; save it as one of these.")
    if local is not None:
        check_bytes(local, is_text=suffix != ".parquet")
    # An existing file may have [ or * in its name; what names no file is left to polars, which expands patterns.
    pattern = source if local is None else glob.escape(str(local))
    objects: str | bytes | None = None
    try:
        if suffix == ".csv":
            frame, known = _scan_csv(pattern, "\n" if local is None else _line_end(local))
            if local is None and frame.is_empty() and any("\r" in name for name in known):  # a file that is one line, read as its header
                frame, known = _scan_csv(pattern, "\r")
        elif suffix == ".parquet":
            frame, known = _scan_parquet(pattern, [*needed, *also])
        else:
            objects = _without_mark(pattern)
            frame, known = _scan_json(objects, [*needed], also)
    except (pl.exceptions.PolarsError, csv.Error, OSError, ValueError, RecursionError) as error:
        if local is not None:
            explain_line(local, suffix)
        reason = hide_access(str(error).strip().split("\n")[0], source)
        fix = "Check the file, which has to be UTF-8, its address and access."
        raise kind_of_fault(error)(where, f'"{shown}" cannot be read ({reason})', fix) from None
    if any("\0" in name for name in known):
        raise PromptmillError(where, f'"{shown}" is not UTF-8', "Save the file as UTF-8: `iconv -f UTF-16 -t UTF-8 old > new`.")
    for column, field in needed.items():
        if column not in known:
            raise _unknown_column(task, field, column, shown, known)
    if twice := next((name for name in (*needed, *also) if known.count(name) > 1), None):
        raise PromptmillError(where, f'"{shown}" names the column "{twice}" twice', "Give every column a name of its own.")
    if frame.is_empty():
        raise PromptmillError(where, f'"{shown}" has no rows', "Put one example in each row, below a line of column names.")
    if task.objective == "classify" and task.data.target in (*needed, *also):
        _check_one_label(task, frame, shown, objects)
    if task.objective == "extract" and task.data.target in needed and frame.schema[task.data.target].is_nested():
        frame = _with_json(frame, task.data.target)
    return as_strings(frame.select(*needed, *(name for name in dict.fromkeys(also) if name in frame.columns)), shown)


def needed_columns(task: TaskSpec) -> dict[str, str]:
    """The columns that a task reads, each with the field of the task file that names it.

    Raises:
        PromptmillError: the target is also a field of the template, or a column has the reserved name `_id`.
    """
    fields = Template(task).fields
    if task.data.target in fields:
        raise PromptmillError(
            f"task {task.name}: data.target",
            f'column "{task.data.target}" is also a field of the template, so the model would read the answer',
            "Take it out of the template or name another target.",
        )
    needed = dict.fromkeys(fields, "template")
    for column, field in task.evaluate.columns.items():
        needed.setdefault(column, field)
    if task.data.target:
        needed.setdefault(task.data.target, "data.target")
    if "_id" in needed:
        raise PromptmillError(f"task {task.name}: {needed['_id']}", 'the column name "_id" is reserved', "Rename the column.")
    return needed


def _scan_parquet(pattern: str, wanted: list[str]) -> tuple[pl.DataFrame, list[str]]:
    """The rows with the wanted columns that exist, and the names of all columns in the file."""
    rows = pl.scan_parquet(pattern)
    known = rows.collect_schema().names()
    return rows.select(name for name in dict.fromkeys(wanted) if name in known).collect(), known


def _scan_csv(pattern: str, line_end: str) -> tuple[pl.DataFrame, list[str]]:
    """The rows, and the names of their columns as they stand in the file."""
    # Collected whole: polars lets a row with too many fields pass when only some columns are asked for.
    frame = pl.scan_csv(pattern, infer_schema=False, eol_char=line_end).collect()
    if not any(f"{name}_duplicated_0" in frame.columns for name in frame.columns):
        return frame, frame.columns
    # polars may have made that name; what the file says is its first row.
    header = pl.scan_csv(pattern, infer_schema=False, eol_char=line_end, has_header=False, n_rows=1, truncate_ragged_lines=True)
    return frame, [name or "" for name in header.collect().row(0)]


def _scan_json(source: str | bytes, needed: list[str], also: tuple[str, ...]) -> tuple[pl.DataFrame, list[str]]:
    """The rows with the needed columns and those of `also`, and the names of all columns in the file where a needed one is empty."""
    frame = pl.scan_ndjson(source, schema=dict.fromkeys((*needed, *also), pl.String)).collect()
    if any(frame[name].null_count() == len(frame) for name in needed):
        # Names alone: values of other columns may have no type in common.
        return frame, list(dict.fromkeys(name for row in _objects(source) for name in row))
    return frame, frame.columns


def _objects(source: str | bytes) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file that polars has read."""
    for line in pl.scan_lines(source).collect()["line"]:
        if line.strip():
            yield json.loads(line)


def _line_end(local: Path) -> str:
    """What ends the first line of a CSV file: a carriage return alone, as old programs for the Mac write it, or a line feed."""
    with local.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file)
        next(rows, None)
        file.seek(0)
        header = "".join(islice(file, rows.line_num))
    return "\r" if header.endswith("\r") else "\n"


def _without_mark(pattern: str) -> str | bytes:
    """JSONL files as polars reads them: their content where they begin with a byte order mark, else their pattern."""
    if not pl.scan_lines(pattern).head(1).collect()["line"].str.starts_with(_MARK).any():
        return pattern
    return "\n".join(pl.scan_lines(pattern).collect()["line"].str.strip_prefix(_MARK)).encode()


def _local_file(source: str, where: str) -> Path | None:
    """The local file that `source` names; None for a remote URL or a pattern."""
    url = urlsplit(source)
    if "://" in source and url.scheme != "file":
        return None
    path = Path(url2pathname(url.path) if url.scheme == "file" else source)
    if path.is_file():
        return path
    if path.is_dir():
        raise PromptmillError(where, f'"{path}" is a folder', f'Name a file in it, or all of a kind: "{path}/*.parquet".')
    if any(mark in path.name for mark in "*?["):
        return None
    if not path.parent.is_dir():
        raise PromptmillError(where, f'there is no file "{path}", nor the folder "{path.parent}"', "Correct the path.")
    beside = sorted(p.name for p in path.parent.iterdir() if p.suffix.lower() in SUFFIXES)
    fix = nearest(path.name, beside) or f"No data file is in {path.parent}; correct the path."
    raise PromptmillError(where, f'there is no file "{path}"', fix)


def _check_one_label(task: TaskSpec, frame: pl.DataFrame, source: str, objects: str | bytes | None) -> None:
    """Refuse labels that are lists or objects; those of a JSONL file, `objects`, have been read as texts."""
    target = task.data.target
    nested = target in frame.columns and frame.schema[target].is_nested()
    if objects is not None and frame[target].str.contains(r"^[\[{]").any():  # as a label that is a text may begin, too
        nested = any(isinstance(row.get(target), list | dict) for row in _objects(objects))
    if nested:
        what = f'column "{target}" of {source} holds lists or objects, but classification has one label per row'
        raise PromptmillError(f"task {task.name}: data.target", what, "Write one text in each row.")


def _unknown_column(task: TaskSpec, field: str, column: str, source: str, known: list[str]) -> PromptmillError:
    fix = nearest_column(column, known)
    return PromptmillError(f"task {task.name}: {field}", f'column "{column}" is not in {source} (columns: {listed(known)})', fix)


def _with_json(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    """The frame with a column of lists or structs as JSON texts, like JSONL files are read."""
    values = [None if value is None else json.dumps(value, ensure_ascii=False, default=str) for value in frame[column].to_list()]
    return frame.with_columns(pl.Series(column, values, dtype=pl.String))
