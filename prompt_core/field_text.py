"""A field's value as the text that the model reads: one spelling, whether it comes from a file, a request or Python."""

from __future__ import annotations

import json
import math
import re
import sys
import unicodedata
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from functools import cache
from typing import Any

import numpy as np
import polars as pl

_MARKS = 128  # combining marks in a row; Unicode's stream-safe format has 30. Putting n in order takes n * n steps


def as_text(value: Any) -> str:
    """The text that the model reads for a value, in Unicode NFC without outer white space.

    True is `true`, 1000.0 is `1000`, as in JSON, where they are one number; lists and mappings are JSON, dates as polars writes them.

    Raises:
        ValueError: it is no text: bytes, half of a surrogate pair, or nothing that can be written; the message is the reason.
    """
    try:
        text = _written(value)
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("is not Unicode text") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not text.isascii() and _many_marks().search(text):
        raise ValueError(f"has more than {_MARKS} combining marks in a row")
    return normalised(text)


def normalised(text: str) -> str:
    """A text in Unicode NFC without outer white space, as all data are tuned on and evaluated."""
    return unicodedata.normalize("NFC", text).strip()


def is_absent(value: Any) -> bool:
    """Whether there is no value: None, or a float's NaN, which stands for a missing value in pandas and NumPy."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_texts(column: pl.Series) -> pl.Series:
    """A column as texts, spelled as `as_text` does but with their white space: neither nested nor Binary -> String. NaN is null."""
    if column.dtype.is_float():
        if column.dtype == pl.Float32:  # 0.1 is no other number in fewer bits
            column = column.cast(pl.String).cast(pl.Float64)
        return pl.Series(column.name, [None if is_absent(value) else _number(value) for value in column], dtype=pl.String)
    return column.dt.to_string("iso") if column.dtype == pl.Duration else column.cast(pl.String)


def _written(value: Any) -> str:
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, bytes | bytearray | memoryview):
        raise ValueError("is bytes, not text")
    if isinstance(value, date | time | timedelta):
        return str(as_texts(pl.Series([value])).item())
    return _json(value) if isinstance(value, bool | float | Mapping | list | tuple) else str(value)


def _json(value: Any) -> str:
    """JSON with the numbers that polars writes when it reads a nested value as text."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_json(str(name))}: {_json(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_json, value)) + "]"
    if isinstance(value, float):
        return _number(value)
    return json.dumps(value if value is None or isinstance(value, bool | int | str) else _written(value), ensure_ascii=False)


def _number(value: float) -> str:
    """The shortest digits that read back as the number, without exponent."""
    digits = float.__repr__(value)
    return format(Decimal(digits), "f").removesuffix(".0") if math.isfinite(value) else digits.replace("nan", "NaN")


@cache
def _many_marks() -> re.Pattern[str]:
    marks = "".join(map(chr, filter(lambda code: unicodedata.combining(chr(code)), range(sys.maxunicode + 1))))
    return re.compile(f"[{marks}\u0f73\u0f75\u0f81]{{{_MARKS + 1},}}")  # three vowel signs are marks once they are decomposed
