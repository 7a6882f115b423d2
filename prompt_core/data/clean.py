"""Cleaning: one spelling per text, an `_id` per text, and no row that is empty, contradictory or there twice."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from prompt_core.data.read import needed_columns
from prompt_core.data.similar import SimilarTexts, example_texts
from prompt_core.errors import PromptmillError
from prompt_core.extraction.targets import canonical_targets
from prompt_core.field_text import normalised
from prompt_core.task import TaskSpec
from prompt_core.template import Template

_EXAMPLES = 5  # shown per reason
_ROWS = 100  # numbers of empty rows kept
_LABELS = 10  # named in an error


@dataclass(frozen=True)
class CleaningReport:
    """What cleaning removed and why, in rows. Row 1 is the first example of the file.

    `empty_rows` has the numbers of the first 100 empty rows; `examples` up to five removed rows per reason, for people.
    """

    rows_read: int
    rows_kept: int
    empty: int = 0
    conflicting: int = 0
    duplicates: int = 0
    near_duplicates: int = 0
    leaked: int = 0
    empty_rows: tuple[int, ...] = ()
    examples: dict[str, tuple[str, ...]] = field(default_factory=dict)
    test_file: CleaningReport | None = None

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        content: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return content

    @property
    def counts(self) -> dict[str, int]:
        """Rows read, removed for each reason, and kept."""
        reasons = ("empty", "conflicting", "duplicates", "near_duplicates", "leaked")
        return {name: getattr(self, name) for name in ("rows_read", *reasons, "rows_kept")}

    def sentence(self) -> str:
        """What was removed, in one line for people; nothing where that is nothing."""
        said = {
            "empty": self.empty,
            "contradictory": self.conflicting,
            "duplicates": self.duplicates,
            "near-duplicates": self.near_duplicates,
            "like a test row": self.leaked,
        }
        removed = [f"{count} {reason}" for reason, count in said.items() if count]
        if not removed:
            return ""
        listed = " and ".join(filter(None, [", ".join(removed[:-1]), removed[-1]]))
        return f"{self.rows_read} rows, {listed} removed, {self.rows_kept} kept"


def clean(frame: pl.DataFrame, task: TaskSpec) -> tuple[pl.DataFrame, CleaningReport]:
    """The usable rows of a task's examples, in file order.

    The targets of `extract` are written in their canonical form.

    Removes rows with an empty field or target, texts with several labels (classify) or extractions, equal texts with an equal target, and
    near-duplicates (the earlier row stays). For other objectives a text may stand several times, with different targets.

    Args:
        frame: the columns of `read_examples`, String or null.

    Returns:
        The frame with `_id` in front, its texts in Unicode NFC without outer whitespace; and what was removed.

    Raises:
        PromptmillError: a column is empty in all rows, a target cannot be read (extract), nothing is left, or labels are too
            few to learn and test (classify).
    """
    frame, report = remove_unusable(frame, task)
    check_labels(frame, task)
    return frame, report


def example_id(values: Sequence[str]) -> str:
    """32 hex characters of the SHA-256 of the field values, equal for equal texts up to NFC and whitespace."""
    plain = [" ".join(unicodedata.normalize("NFC", value).split()) for value in values]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:32]


def remove_unusable(frame: pl.DataFrame, task: TaskSpec) -> tuple[pl.DataFrame, CleaningReport]:
    """`clean` without the check of the labels, which does not apply to a test file."""
    fields = Template(task).fields
    # A text to distil on needs no target: a row may have one, and is then fit to be a demonstration.
    answered = () if task.objective == "distill" else (task.data.target,)
    target = task.data.target
    columns = list(needed_columns(task))
    rows_read = len(frame)
    frame = canonical_targets(frame, task) if task.objective == "extract" else frame
    frame = frame.select(pl.Series(name, [normalised(value or "") for value in frame[name]], dtype=pl.String) for name in columns)
    for name in (*fields, *answered):
        if (frame[name] == "").all():
            raise PromptmillError(
                f"task {task.name}: {needed_columns(task)[name]}", f'column "{name}" is empty in all {rows_read} rows', "Fill it in."
            )
    ids = pl.Series("_id", [example_id(values) for values in frame.select(fields).rows()], dtype=pl.String)
    frame = frame.select(ids, pl.all()).with_row_index("_row", offset=1)
    removed: dict[str, pl.DataFrame] = {}

    frame, removed["empty"] = _divide(frame, pl.any_horizontal(pl.col(*fields, *answered) == ""))
    if task.objective in ("classify", "extract"):
        same = ["_id", *(fields if task.tags else ())]  # offsets count white space, an id does not
        frame, removed["conflicting"] = _divide(frame, pl.col(target).n_unique().over(same) > 1)
    frame, removed["duplicates"] = _divide(frame, ~pl.struct("_id", *([target] if target else [])).is_first_distinct())
    twins = _near_duplicates(frame, fields, task.data.near_duplicate)
    frame, removed["near_duplicates"] = _divide(frame, pl.col("_id").is_in(list(twins)))
    if frame.is_empty():
        counts = ", ".join(f"{len(rows)} {reason}" for reason, rows in removed.items())
        raise PromptmillError(f"task {task.name}: data", f"no usable row is left of {rows_read} ({counts})", "Correct the examples.")
    report = CleaningReport(
        rows_read=rows_read,
        rows_kept=len(frame),
        **{reason: len(rows) for reason, rows in removed.items()},  # type: ignore[arg-type]
        empty_rows=tuple(removed["empty"]["_row"].head(_ROWS)),
        examples={
            reason: tuple(_described(row, fields, target, twins) for row in rows.head(_EXAMPLES).iter_rows(named=True))
            for reason, rows in removed.items()
            if len(rows)
        },
    )
    return frame.drop("_row"), report


def check_labels(frame: pl.DataFrame, task: TaskSpec) -> None:
    """Refuse labels that cannot be learned and tested: only one, or one with a single example.

    Raises:
        PromptmillError: names the column and the labels.
    """
    if task.objective != "classify":
        return
    where, target = f"task {task.name}: data.target", task.data.target
    counts = frame[target].value_counts().sort(target)
    if len(counts) == 1:
        what = f'column "{target}" has only one label, "{counts[target][0]}", in all {len(frame)} usable rows'
        raise PromptmillError(where, what, "Classification needs at least two labels.")
    single = counts.filter(pl.col("count") == 1)[target].to_list()
    if single:
        what = f'column "{target}" has labels with a single usable example: {named(single)}'
        raise PromptmillError(where, what, "Add examples for them or remove them: one example cannot be both learned from and tested on.")


def named(values: Sequence[str]) -> str:
    """The first few values in quotes, and how many more there are."""
    more = f" and {len(values) - _LABELS} more" if len(values) > _LABELS else ""
    return ", ".join(f'"{value}"' for value in values[:_LABELS]) + more


def _divide(frame: pl.DataFrame, unusable: pl.Expr) -> tuple[pl.DataFrame, pl.DataFrame]:
    marked = frame.with_columns(_unusable=unusable)
    return marked.filter(~pl.col("_unusable")).drop("_unusable"), marked.filter("_unusable").drop("_unusable")


def _near_duplicates(frame: pl.DataFrame, fields: tuple[str, ...], threshold: float) -> dict[str, int]:
    """The `_id`s of texts that come close to an earlier one that stays, each with the row of that one."""
    if threshold == 1:
        return {}
    # Rows of one text are references to choose from, not duplicates: each text is looked at once.
    texts = frame.unique("_id", keep="first", maintain_order=True)
    index, kept_rows, twins = SimilarTexts(threshold), [], {}
    for _id, row, text in zip(texts["_id"], texts["_row"], example_texts(texts, fields), strict=True):
        sketch = index.sketch(text)
        twin = index.match(sketch)
        if twin is None:
            index.add(sketch)
            kept_rows.append(row)
        else:
            twins[_id] = kept_rows[twin]
    return twins


def _described(row: dict[str, Any], fields: tuple[str, ...], target: str, twins: dict[str, int]) -> str:
    text = " / ".join(str(row[name]) for name in fields)
    twin = f", like row {twins[row['_id']]}" if row["_id"] in twins else ""
    return f"row {row['_row']}{twin}: {text[:120]!r}" + (f" -> {row[target][:60]!r}" if target else "")
