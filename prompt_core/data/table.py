"""Tables of any columns, read whole: for looks at a file that fits in memory; `prompt_core.batch` streams."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from prompt_core.data.malformed import check_bytes, explain_line
from prompt_core.errors import PromptmillError, kind_of_fault

_READERS: dict[str, Callable[[Path], pl.DataFrame]] = {
    ".csv": lambda path: pl.read_csv(path, infer_schema_length=None),
    ".jsonl": pl.read_ndjson,
    ".ndjson": pl.read_ndjson,
    ".parquet": pl.read_parquet,
}


def read_table(path: str | Path) -> pl.DataFrame:
    """All columns of a CSV, JSONL or Parquet file.

    Raises:
        PromptmillError: the file is missing, of another kind or damaged; `Unreachable` for a fault that may pass.
    """
    path = Path(path)
    if path.suffix not in _READERS:
        raise PromptmillError(str(path), f'the ending "{path.suffix}" is not known', f"Use one of {', '.join(_READERS)}.")
    try:
        return _READERS[path.suffix](path)
    except FileNotFoundError:
        raise PromptmillError(str(path), "there is no such file", "Check the path.") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        check_bytes(path, is_text=path.suffix != ".parquet")
        explain_line(path, path.suffix)
        raise kind_of_fault(error)(str(path), f"cannot be read ({str(error).splitlines()[0]})", "Check the file.") from None
