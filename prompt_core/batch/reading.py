"""Tables read in chunks of rows, in constant memory: CSV, JSONL and Parquet. A row that cannot be read is said with its reason."""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from prompt_core.data.malformed import check_bytes, explain_line
from prompt_core.data.read import SUFFIXES
from prompt_core.errors import PromptmillError, kind_of_fault
from prompt_core.field_text import as_texts

_LARGEST_FIELD = 2**27
_Raw = tuple[int, dict[str, Any] | str]  # number, and the row or why it is none


@dataclass(frozen=True)
class Chunk:
    """Some rows of a table.

    Attributes:
        first: number of the first row, from 1.
        frame: the rows that could be read; a CSV file's columns are text, as they stand there.
        rows: the same as inputs, spelled as evaluation reads the file: without what a frame of one type per column adds.
        numbers: their numbers.
        bad: the others, with the reason.
    """

    first: int
    frame: pl.DataFrame
    rows: Sequence[Mapping[str, Any]]
    numbers: list[int]
    bad: dict[int, str] = field(default_factory=dict)


def check_source(path: Path) -> None:
    """Raise PromptmillError where a table cannot be read at all: missing, of another kind, or not readable."""
    _check_suffix(path)
    try:
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise PromptmillError(str(path), "there is no such file", "Check the path.") from None
    except OSError as error:
        raise kind_of_fault(error)(str(path), f"cannot be read ({error.strerror})", "Check the access rights.") from None


def check_target(path: Path) -> None:
    """Raise PromptmillError where a table cannot be written, before hours of work are spent."""
    _check_suffix(path)
    if path.is_dir():
        raise PromptmillError(str(path), "is a folder", "Name a file.")
    if not path.parent.is_dir():
        raise PromptmillError(str(path), f"there is no folder {path.parent}", "Make it first.")


def read_chunks(path: Path, rows: int) -> Iterator[Chunk]:
    """The table's rows in order, `rows` at a time.

    Raises:
        PromptmillError: the file is damaged as a whole, such as a Parquet file without an end.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet(path, rows)
        return
    raw, frame = _READERS[suffix](path)
    first, part = 1, list(islice(raw, rows))
    while part or first == 1:  # an empty table has columns too
        good = [(number, row) for number, row in part if not isinstance(row, str)]
        bad = {number: row for number, row in part if isinstance(row, str)}
        objects = [row for _, row in good]
        yield Chunk(first, frame(objects), objects, [number for number, _ in good], bad)
        first += len(part) or 1
        part = list(islice(raw, rows))


def count_rows(path: Path) -> int:
    """How many rows a table has, for a progress bar: exact for Parquet, else the lines of the file."""
    if path.suffix.lower() == ".parquet":
        try:
            return int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())
        except (pl.exceptions.PolarsError, OSError) as error:
            raise _damaged(path, error) from None
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _csv(path: Path) -> tuple[Iterator[_Raw], Callable[[Sequence[Mapping[str, Any]]], pl.DataFrame]]:
    csv.field_size_limit(_LARGEST_FIELD)
    lines = _csv_lines(path)
    header = next(lines, [])
    if isinstance(header, str) or not _is_utf8("".join(header)):  # what is said from here on has the place and what to do
        check_bytes(path, is_text=True)
        explain_line(path, ".csv")
    if not header or len(set(header)) < len(header):
        what = "has no line of column names" if not header else f"names a column twice ({', '.join(header)})"
        raise PromptmillError(str(path), what, "Give every column a name of its own in the first line.")

    def rows() -> Iterator[_Raw]:
        for number, row in enumerate(filter(None, lines), 1):
            if isinstance(row, str):
                yield number, row
            elif len(row) != len(header):
                yield number, f"has {len(row)} fields, the header {len(header)}"
            elif not _is_utf8("".join(row)):
                yield number, "is not UTF-8"
            else:
                yield number, {name: value or None for name, value in zip(header, row, strict=True)}

    return rows(), lambda good: pl.DataFrame(good, schema=dict.fromkeys(header, pl.String()))


def _csv_lines(path: Path) -> Iterator[list[str] | str]:
    """The lines as lists of their fields, or why one is none: quotes have to stand where CSV has them, as in a file to tune on."""
    lines = csv.reader(path.open(encoding="utf-8-sig", errors="surrogateescape", newline=""), strict=True)
    while True:
        try:
            yield next(lines)
        except csv.Error as error:  # the reader goes on with the next line
            yield f"is not CSV ({error})"
        except StopIteration:
            return


def _jsonl(path: Path) -> tuple[Iterator[_Raw], Callable[[Sequence[Mapping[str, Any]]], pl.DataFrame]]:
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):  # no row can be read, for one reason
            check_bytes(path, is_text=True)  # says which encoding and what to do

    def rows() -> Iterator[_Raw]:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            for number, line in enumerate(filter(str.strip, lines), 1):
                yield number, _object(line)

    return rows(), _frame_of_objects


def _object(line: str) -> dict[str, Any] | str:
    """The JSON object that a line is, or why it is none."""
    if not _is_utf8(line):
        return "is not UTF-8"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # a number may have more digits than Python reads
        return f"is not JSON ({getattr(error, 'msg', 'too deep' if isinstance(error, RecursionError) else 'a number is too long')})"
    if not isinstance(row, dict):
        return f"holds a JSON {type(row).__name__}, not an object"
    if "\\ud" in line.lower() and not _is_utf8(json.dumps(row, ensure_ascii=False)):
        return "is not Unicode text (half of a surrogate pair)"
    return row


_READERS = {".csv": _csv, ".jsonl": _jsonl, ".ndjson": _jsonl}


def _parquet(path: Path, rows: int) -> Iterator[Chunk]:
    try:
        for first in range(0, max(1, count_rows(path)), rows):
            frame = pl.scan_parquet(path, glob=False).slice(first, rows).collect()
            texts = frame.with_columns(as_texts(column) for column in frame if not (column.dtype.is_nested() or column.dtype == pl.Binary))
            yield Chunk(first + 1, frame, list(texts.iter_rows(named=True)), list(range(first + 1, first + 1 + len(frame))))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _damaged(path, error) from None


def _frame_of_objects(objects: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """JSON objects as columns; one that no type holds with all of its values becomes text, JSON for what is none."""
    names = dict.fromkeys(name for row in objects for name in row)
    columns = {name: _column(name, [row.get(name) for row in objects]) for name in names}
    return pl.DataFrame(columns) if columns else pl.DataFrame([{} for _ in objects])


def _column(name: str, values: list[Any]) -> pl.Series:
    try:
        column = pl.DataFrame([{name: value} for value in values], infer_schema_length=None)[name]
        if not _has_empty_struct(column.dtype) and all(map(_holds, column.to_list(), values)):
            return column
    except (TypeError, OverflowError, pl.exceptions.PolarsError):
        pass
    texts = [value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in values]
    return pl.Series(name, texts, dtype=pl.String)


def _holds(found: Any, given: Any) -> bool:
    """Whether a value of a column is the one that was given, up to the null of a key that it does not have."""
    if isinstance(given, dict):
        if not isinstance(found, dict) or not given.keys() <= found.keys():
            return False
        return all(_holds(inner, given[name]) if name in given else inner is None for name, inner in found.items())
    if isinstance(given, list):
        return isinstance(found, list) and len(found) == len(given) and all(map(_holds, found, given))
    if isinstance(given, bool) or isinstance(found, bool):
        return found is given
    return bool(found == given) or (found != found and given != given)  # NaN is not itself


def _has_empty_struct(dtype: pl.DataType) -> bool:
    """Whether a type has objects without a key, which Parquet cannot hold."""
    if isinstance(dtype, pl.Struct):
        return not dtype.fields or any(_has_empty_struct(field.dtype) for field in dtype.fields)  # type: ignore[arg-type]
    return isinstance(dtype, pl.List) and _has_empty_struct(dtype.inner)  # type: ignore[arg-type]


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise PromptmillError(str(path), f'the ending "{path.suffix}" is not known', f"Use one of {', '.join(SUFFIXES)}.")


def _damaged(path: Path, error: Exception) -> PromptmillError:
    return kind_of_fault(error)(str(path), f"cannot be read ({str(error).splitlines()[0]})", "Check the file.")
