"""Tables of any columns: read for prediction, written beside and then renamed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import polars as pl

from prompt_core.errors import PromptmillError

_READERS: dict[str, Callable[[Path], pl.DataFrame]] = {
    ".csv": lambda path: pl.read_csv(path, infer_schema_length=None),
    ".jsonl": pl.read_ndjson,
    ".ndjson": pl.read_ndjson,
    ".parquet": pl.read_parquet,
}
_WRITERS: dict[str, Callable[[pl.DataFrame, Path], object]] = {
    ".csv": lambda frame, path: frame.write_csv(path),
    ".jsonl": lambda frame, path: frame.write_ndjson(path),
    ".ndjson": lambda frame, path: frame.write_ndjson(path),
    ".parquet": lambda frame, path: frame.write_parquet(path),
}


def read_table(path: str | Path) -> pl.DataFrame:
    """All columns of a CSV, JSONL or Parquet file.

    Raises:
        PromptmillError: the file is missing, of another kind or damaged.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise PromptmillError(str(path), f'the ending "{path.suffix}" is not known', f"Use one of {', '.join(_READERS)}.")
    try:
        return _READERS[path.suffix](path)
    except FileNotFoundError:
        raise PromptmillError(str(path), "there is no such file", "Check the path.") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise PromptmillError(str(path), f"cannot be read ({str(error).splitlines()[0]})", "Check the file.") from None


def check_writable(path: str | Path) -> None:
    """Refuse a place that `write_table` could not write to, before hours of work are spent.

    Raises:
        PromptmillError: an ending that is not known, or no such folder.
    """
    path = Path(path)
    if path.suffix not in _WRITERS:
        raise PromptmillError(str(path), f'the ending "{path.suffix}" is not known', f"Use one of {', '.join(_WRITERS)}.")
    if not path.parent.is_dir():
        raise PromptmillError(str(path), f"there is no folder {path.parent}", "Make it first.")


def write_table(frame: pl.DataFrame, path: str | Path) -> None:
    """Write a table so that whoever looks sees the old file or the whole new one."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}{path.suffix}")
    try:
        _WRITERS[path.suffix](frame, beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
