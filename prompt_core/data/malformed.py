"""Where a data file that polars cannot read is malformed: the byte, or the line and what is wrong with it."""

from __future__ import annotations

import codecs
import csv
import json
from pathlib import Path

from prompt_core.data.columns import other_separator
from prompt_core.errors import PromptmillError, kind_of_fault


def check_bytes(path: Path, is_text: bool) -> None:
    """Refuse an empty file, and a text file with bytes that are not UTF-8: polars does not say where they are.

    Raises:
        PromptmillError: with file, line and byte; or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            first = file.peek(2)
            if not first:
                raise PromptmillError(str(path), "the file is empty", "Put the examples in.")
            encoding, offset = "UTF-16" if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "Windows-1252", 0
            for number, line in enumerate(file if is_text else (), 1):
                try:
                    line.decode()
                except UnicodeDecodeError as error:
                    raise PromptmillError(
                        f"{path}: line {number}",
                        f"byte {offset + error.start} (0x{line[error.start]:02x}) is not UTF-8",
                        f"Save the file as UTF-8; from {encoding}: `iconv -f {encoding.upper()} -t UTF-8 old > new`.",
                    ) from None
                offset += len(line)
    except OSError as error:
        raise kind_of_fault(error)(str(path), f"cannot be read ({error.strerror})", "Check the access rights.") from None


def explain_line(path: Path, suffix: str) -> None:
    """Raise the error of the first malformed line of a UTF-8 file, where one can be found.

    Args:
        suffix: of its kind, in small letters.

    Raises:
        PromptmillError: with file, line, what is wrong and how to write it.
    """
    if suffix == ".csv":
        _explain_csv(path)
    elif suffix != ".parquet":
        _explain_json(path)


def _explain_csv(path: Path) -> None:
    fix = 'Put a text with commas or line breaks in double quotes, and write a double quote inside as "".'
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        line, header = 1, None
        try:
            for row in rows:
                if header is None:
                    header, fix = row, other_separator(row) or fix
                if len(row) > len(header):
                    raise PromptmillError(f"{path}: line {line}", f"has {len(row)} fields, the header {len(header)}", fix)
                line = rows.line_num + 1
        except csv.Error as error:
            raise PromptmillError(f"{path}: line {line}", f"is not CSV ({error})", fix) from None


def _explain_json(path: Path) -> None:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line) if line.strip() else {}
            except json.JSONDecodeError as error:
                found = f"is not JSON ({error.msg} at character {error.pos})"
            except RecursionError:
                found = "is nested too deeply"
            else:
                if isinstance(row, dict):
                    continue
                found = f"holds a JSON {type(row).__name__}, not an object"
            raise PromptmillError(f"{path}: line {number}", found, 'Write one object per line, like {"text": "...", "label": "..."}.')
