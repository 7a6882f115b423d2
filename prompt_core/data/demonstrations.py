"""Which examples are shown solved, where no search chooses them."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl


def fair_draw(frame: pl.DataFrame, count: int) -> pl.DataFrame:
    """One row of each of the first `count` texts, fewer where there are not so many. Ids are hashes, so that their order is a draw;
    of a text with several targets the first one is taken."""
    ordered = frame.sort("_id", *sorted(set(frame.columns) - {"_id"}))  # an order of content alone
    return ordered.unique("_id", keep="first", maintain_order=True).head(count)


def first_rows(ids: Sequence[str]) -> dict[str, int]:
    """The number of the first row of each text, whose target is shown as by `fair_draw`; `ids` are the rows', in an order of content."""
    numbers: dict[str, int] = {}
    for number, _id in enumerate(ids):
        numbers.setdefault(_id, number)
    return numbers
