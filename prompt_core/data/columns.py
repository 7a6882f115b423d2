"""What to do about columns that a table lacks."""

from __future__ import annotations

from collections.abc import Sequence

from prompt_core.errors import nearest


def nearest_column(name: str, columns: Sequence[str]) -> str:
    """The fix where a table has no column `name`: other marks between its columns than commas, else the column closest to it."""
    return other_separator(columns) or nearest(name, columns)


def other_separator(columns: Sequence[str]) -> str:
    """What to do about a header that other marks than commas seem to divide; nothing where none does."""
    mark = next((mark for mark in ";\t|" if mark in columns[0]), None) if len(columns) == 1 else None
    return f"Its columns look separated by {mark!r}; Promptmill reads commas." if mark else ""
