"""Tables that are read whole: all columns, or one line that says what is wrong with the file."""

from pathlib import Path

import polars as pl
import pytest

from prompt_core import PromptmillError
from prompt_core.data.table import read_table


@pytest.mark.parametrize("ending", ["csv", "jsonl", "ndjson", "parquet"])
def test_every_kind_comes_with_all_its_columns(tmp_path: Path, ending: str) -> None:
    frame, path = pl.DataFrame({"text": ["a, b", "c"], "stars": [1, 2]}), tmp_path / f"a.{ending}"
    {"csv": frame.write_csv, "parquet": frame.write_parquet}.get(ending, frame.write_ndjson)(path)
    assert read_table(path).equals(frame)


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
        ("a.xlsx", b"", 'the ending ".xlsx" is not known. Use one of .csv'),
    ],
)
def test_a_malformed_file_is_named_with_its_line_and_what_to_do(tmp_path: Path, name: str, content: bytes, finding: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PromptmillError, match=finding):
        read_table(tmp_path / name)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PromptmillError, match=r"none\.csv: there is no such file"):
        read_table(tmp_path / "none.csv")
