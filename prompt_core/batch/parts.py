"""Finished parts of a table beside the output: what a process that was killed has done is found again, and joined at the end."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import polars as pl

_REJECTED = ".rejected.jsonl"
_GROUP = 16_384  # rows of a row group: so many are held at least


class Parts:
    """The parts of one output file, in a hidden folder beside it.

    A part is there as a whole or not at all. Its key says what it was made of, so that only the same work is found again.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._folder = target.with_name(f".{target.name}.parts")
        self._paths: list[Path] = []

    def has(self, key: str) -> bool:
        """Whether the next part is there; if so it is taken."""
        path = self._folder / f"{key}.parquet"
        if path.is_file():
            self._paths.append(path)
        return path.is_file()

    def put(self, key: str, frame: pl.DataFrame, rejected: Mapping[int, str]) -> None:
        """Write the next part: its rows, and the numbers of those that were rejected with the reasons."""
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"{key}.parquet"
        lines = [json.dumps({"row": row, "reason": reason}, ensure_ascii=False) + "\n" for row, reason in sorted(rejected.items())]
        self._write(path.with_suffix(_REJECTED), lambda file: file.write("".join(lines).encode()))
        self._write(path, frame.write_parquet)  # the last: a part is there when this is
        self._paths.append(path)

    @property
    def rejected_path(self) -> Path:
        """Where the rejected rows of the whole go."""
        return self._target.with_name(self._target.name + _REJECTED)

    def join(self) -> tuple[int, int]:
        """Write the output and the rejected rows, beside and then renamed, and remove the parts; how many rows each has."""
        self._folder.mkdir(exist_ok=True)
        beside, beside_rejected = (self._folder / f"{name}.{os.getpid()}" for name in ("joined", "rejected"))
        rows = self._join_rows(beside)
        rejected = 0
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

    def _join_rows(self, beside: Path) -> int:
        schemas = [pl.read_parquet_schema(path) for path in self._paths]
        schema = _common(schemas)
        if self._target.suffix == ".parquet":
            frames = [_aligned(pl.scan_parquet(path, glob=False), own, schema) for path, own in zip(self._paths, schemas, strict=True)]
            (pl.concat(frames) if frames else pl.LazyFrame(schema=schema)).sink_parquet(beside, row_group_size=_GROUP)
            return int(pl.scan_parquet(beside, glob=False).select(pl.len()).collect().item())
        rows = 0
        with beside.open("wb") as file:
            if self._target.suffix == ".csv":
                pl.DataFrame(schema=dict.fromkeys(schema, pl.String())).write_csv(file)
            for path, own in zip(self._paths, schemas, strict=True):
                frame = _aligned(pl.read_parquet(path, glob=False).lazy(), own, schema).collect()
                rows += len(frame)
                if self._target.suffix == ".csv":
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
    """One type for every column of all parts: the smallest that holds their values, text where there is none."""
    found: dict[str, list[pl.DataType]] = {}
    for schema in {tuple(schema.items()): schema for schema in schemas}.values():
        for name, dtype in schema.items():
            found.setdefault(name, []).append(dtype)
    common = {}
    for name, types in found.items():
        try:
            common[name] = pl.concat([pl.DataFrame(schema={name: dtype}) for dtype in types], how="vertical_relaxed").schema[name]
        except pl.exceptions.PolarsError:
            common[name] = pl.String()
    return common


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
    """With lists and structs as JSON, which a CSV file can hold."""
    return frame.with_columns(_as_json(name) for name, dtype in frame.schema.items() if dtype.is_nested())


def _as_json(name: str) -> pl.Expr:
    """A nested column as JSON texts."""

    def text(value: object) -> str:
        plain = value.to_list() if isinstance(value, pl.Series) else value
        return json.dumps(plain, ensure_ascii=False, default=lambda inner: inner.to_list() if isinstance(inner, pl.Series) else str(inner))

    return pl.col(name).map_elements(text, return_dtype=pl.String)
