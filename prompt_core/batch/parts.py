"""Finished parts of a table beside the output: what a process that was killed has done is found again, and joined at the end."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import polars as pl

from prompt_core.errors import PromptmillError
from prompt_core.field_text import as_text

_REJECTED = ".rejected.jsonl"
_GROUP = 16_384  # rows of a row group: so many are held at least


class Parts:
    """The parts of one output file, in a hidden folder beside it.

    A part is there as a whole or not at all. Its key says what it was made of, so that only the same work is found again.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._suffix = target.suffix.lower()
        self._folder = target.with_name(f".{target.name}.parts")
        self._paths: list[Path] = []

    def has(self, key: str, rows: int) -> bool:
        """Whether the next part is there with all its rows, answered or rejected; if so it is taken. A power cut may leave empty files."""
        path = self._folder / f"{key}.parquet"
        try:
            found = int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())
            found += path.with_suffix(_REJECTED).read_bytes().count(b"\n")
        except (pl.exceptions.PolarsError, OSError):
            return False
        if found == rows:
            self._paths.append(path)
        return found == rows

    def begin(self, schema: Mapping[str, pl.DataType]) -> None:
        """Make the folder, before anything is answered.

        Raises:
            PromptmillError: nothing can be written there, or the output cannot hold a column of the input.
        """
        binary = [name for name, dtype in schema.items() if _holds_binary(dtype)]
        if binary and self._suffix != ".parquet":
            what = f'cannot hold the column "{binary[0]}" of bytes'
            raise PromptmillError(str(self._target), what, "Write a .parquet file, or leave the column out of the input.")
        with self._writing():
            self._folder.mkdir(exist_ok=True)

    def put(self, key: str, frame: pl.DataFrame, rejected: Mapping[int, str]) -> None:
        """Write the next part: its rows, and the numbers of those that were rejected with the reasons.

        Raises:
            PromptmillError: it cannot be written.
        """
        path = self._folder / f"{key}.parquet"
        lines = [json.dumps({"row": row, "reason": reason}, ensure_ascii=False) + "\n" for row, reason in sorted(rejected.items())]
        with self._writing():
            self._write(path.with_suffix(_REJECTED), lambda file: file.write("".join(lines).encode()))
            self._write(path, frame.write_parquet)  # the last: a part is there when this is
        self._paths.append(path)

    @property
    def rejected_path(self) -> Path:
        """Where the rejected rows of the whole go."""
        return self._target.with_name(self._target.name + _REJECTED)

    def join(self) -> tuple[int, int]:
        """Write the output and the rejected rows, beside and then renamed, and remove the parts; how many rows each has.

        Raises:
            PromptmillError: they cannot be written.
        """
        beside, beside_rejected = (self._folder / f"{name}.{os.getpid()}" for name in ("joined", "rejected"))
        rejected = 0
        with self._writing():
            rows = self._join_rows(beside)
            with beside_rejected.open("wb") as file:
                for path in self._paths:
                    content = path.with_suffix(_REJECTED).read_bytes()
                    rejected += content.count(b"\n")
                    file.write(content)
            if rejected:
                beside_rejected.replace(self.rejected_path)
            else:
                self.rejected_path.unlink(missing_ok=True)  # of an earlier run
            beside.replace(self._target)
            shutil.rmtree(self._folder)
        return rows, rejected

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pl.exceptions.PolarsError) as error:  # polars has errors of its own for what the system refuses
            what = f"cannot be written ({getattr(error, 'strerror', None) or str(error).splitlines()[0]})"
            place = getattr(error, "filename", None) or self._folder
            raise PromptmillError(str(place), what, "Check the folder, its access rights and the disk.") from None

    def _join_rows(self, beside: Path) -> int:
        schemas: list[dict[str, Any]] = [dict(pl.scan_parquet(path, glob=False).collect_schema()) for path in self._paths]
        schema = _common(schemas)
        if self._suffix == ".parquet":
            frames = [_aligned(pl.scan_parquet(path, glob=False), own, schema) for path, own in zip(self._paths, schemas, strict=True)]
            (pl.concat(frames) if frames else pl.LazyFrame(schema=schema)).sink_parquet(beside, row_group_size=_GROUP)
            return int(pl.scan_parquet(beside, glob=False).select(pl.len()).collect().item())
        rows = 0
        with beside.open("wb") as file:
            if self._suffix == ".csv":
                pl.DataFrame(schema=dict.fromkeys(schema, pl.String())).write_csv(file)
            for path, own in zip(self._paths, schemas, strict=True):
                frame = _aligned(pl.read_parquet(path, glob=False).lazy(), own, schema).collect()
                rows += len(frame)
                if self._suffix == ".csv":
                    _flat(frame).write_csv(file, include_header=False)
                else:
                    frame.write_ndjson(file)
        return rows

    def _write(self, path: Path, write: Callable[[IO[bytes]], object]) -> None:
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        with beside.open("wb") as file:
            write(file)
        beside.replace(path)


def _common(schemas: list[dict[str, pl.DataType]]) -> dict[str, pl.DataType]:
    """One type for every column of all parts: the smallest that holds their values as they are, text where there is none."""
    common: dict[str, pl.DataType] = {}
    for schema in schemas:
        for name, dtype in schema.items():
            common[name] = _wider(common.get(name, pl.Null()), dtype) or pl.String()
    return common


def _wider(one: pl.DataType, other: pl.DataType) -> pl.DataType | None:
    """The type of values of both types; None where one of them would be another value in it."""
    if one == other or other == pl.Null:
        return one
    if one == pl.Null:
        return other
    if one.is_numeric() and other.is_numeric():
        return pl.concat([pl.Series(dtype=one).to_frame(), pl.Series(dtype=other).to_frame()], how="vertical_relaxed").dtypes[0]
    if isinstance(one, pl.List) and isinstance(other, pl.List):
        inner = _wider(one.inner, other.inner)  # type: ignore[arg-type]
        return pl.List(inner) if inner else None
    if isinstance(one, pl.Struct) and isinstance(other, pl.Struct):
        fields: dict[str, Any] = {field.name: field.dtype for field in one.fields}
        for field in other.fields:
            fields[field.name] = _wider(fields.get(field.name, pl.Null()), field.dtype)  # type: ignore[arg-type]
        return pl.Struct(fields) if None not in fields.values() else None
    return None


def _holds_binary(dtype: Any) -> bool:
    if isinstance(dtype, pl.Struct):
        return any(_holds_binary(field.dtype) for field in dtype.fields)
    return _holds_binary(dtype.inner) if isinstance(dtype, pl.List | pl.Array) else dtype == pl.Binary


def _aligned(rows: pl.LazyFrame, own: Mapping[str, pl.DataType], schema: Mapping[str, pl.DataType]) -> pl.LazyFrame:
    columns = []
    for name, dtype in schema.items():
        if name not in own:
            columns.append(pl.lit(None, dtype).alias(name))
        elif own[name].is_nested() and not dtype.is_nested():
            columns.append(_as_json(name))
        else:
            columns.append(pl.col(name).cast(dtype))
    return rows.select(columns)


def _flat(frame: pl.DataFrame) -> pl.DataFrame:
    """With lists and structs as JSON and durations as ISO 8601, which a CSV file can hold."""
    nested = [_as_json(name) for name, dtype in frame.schema.items() if dtype.is_nested()]
    return frame.with_columns(*nested, *(pl.col(name).dt.to_string("iso") for name, dtype in frame.schema.items() if dtype == pl.Duration))


def _as_json(name: str) -> pl.Expr:
    """A nested column as JSON texts."""

    def texts(column: pl.Series) -> pl.Series:
        values = [None if value is None else json.dumps(value, ensure_ascii=False, default=as_text) for value in column.to_list()]
        return pl.Series(column.name, values, dtype=pl.String)

    return pl.col(name).map_batches(texts, return_dtype=pl.String(), is_elementwise=True)
