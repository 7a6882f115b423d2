"""The batch job: a table in, the same table with answers out, part by part, by one prompt or by the one that each row names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

import prompt_core
from prompt_core.batch.parts import Parts
from prompt_core.batch.reading import Chunk, check_source, check_target, count_rows, file_digest, read_chunks
from prompt_core.data.columns import nearest_column
from prompt_core.data.read import PREDICTION
from prompt_core.encoded import Encoded
from prompt_core.errors import PromptmillError, Unreachable
from prompt_core.mixed import answer
from prompt_core.ready import Answer
from prompt_core.shelf import Shelf, Shelved

PART_ROWS = 2048
ADDED = {PREDICTION: pl.String(), "prediction_score": pl.Float64(), "prompt_version": pl.Int64(), "prompt_digest": pl.String()}
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Predicted:
    """What a job has done.

    Attributes:
        rows: that were answered.
        rejected: that were not, for the reasons in `rejected_path`.
        found: of all, those in parts that an interrupted run had finished.
        rejected_path: a JSON object for each rejected row, `row` (from 1) and `reason`; None where there is none.
    """

    rows: int
    rejected: int
    found: int
    rejected_path: Path | None


def predict_table(
    shelf: Shelf,
    name: str | None,
    source: Path,
    target: Path,
    prompt_column: str | None = None,
    part_rows: int = PART_ROWS,
    on_progress: OnProgress | None = None,
) -> Predicted:
    """Answer every row of a table with published prompts, in constant memory.

    The output has all columns of the input and `ADDED`. Parts that are finished lie beside the output until it is complete:
    a job that was killed goes on behind them when it is started again, on the same input with the same prompts. What a name
    means is looked up once per job.

    Args:
        shelf: where the prompts come from.
        name: `name`, `name@3` or `name@alias`; None where every row names its prompt.
        source: CSV, JSONL or Parquet with the fields of the prompts' templates as columns.
        target: of any of these kinds.
        prompt_column: names a prompt per row; an empty cell stands for `name`. Rows of many prompts share packed passes.
        part_rows: of a part; what is lost at most when the job is killed.
        on_progress: called with (finished, all), where all is an estimate.

    Raises:
        Unreachable: the store cannot be read. The finished parts stay, and rows are not rejected for it.
        PromptmillError: a file cannot be read or written, neither `name` nor `prompt_column` is given, `name` is no prompt, a column
            is missing, has a name of `ADDED` or is of a type that the output cannot hold.
    """
    check_source(source)
    check_target(target)
    if source.resolve() == target.resolve():
        raise PromptmillError(str(target), "is the input", "Name another output.")
    if name is None and prompt_column is None:
        raise PromptmillError(str(source), "no prompt is named for it", "Name one, or the column that names one per row.")
    job = _Job(shelf, name, prompt_column)
    if name is not None:
        job.found(name)
    content, total = file_digest(source), count_rows(source)
    parts = Parts(target)
    found = done = 0
    for number, chunk in enumerate(read_chunks(source, part_rows)):
        _check_added(chunk.frame, source)
        if number == 0:
            job.check_columns(chunk.frame, source)
            parts.begin(chunk.frame.schema)
        rows = len(chunk.numbers) + len(chunk.bad)
        key = f"{number:06d}-{job.key(chunk, content)}"
        if parts.has(key, rows):
            found += rows
        else:
            parts.put(key, *job.answered(chunk))
        done += rows
        if on_progress:
            on_progress(done, max(done, total))
    answered, rejected = parts.join()
    return Predicted(answered, rejected, found, parts.rejected_path if rejected else None)


def _check_added(frame: pl.DataFrame, source: Path) -> None:
    """Refuse columns that would be written over."""
    if taken := [name for name in ADDED if name in frame.columns]:
        raise PromptmillError(f"{source}: {taken[0]}", "a column of this name is added", "Rename the column.")


class _Job:
    def __init__(self, shelf: Shelf, name: str | None, column: str | None) -> None:
        self._shelf, self._name, self._column = shelf, name, column
        self._known: dict[str, Shelved | PromptmillError] = {}

    def found(self, name: str) -> Shelved:
        """What a name means in this job. Raises PromptmillError where it means nothing, `Unreachable` where nobody can say."""
        if name not in self._known:
            try:
                self._known[name] = self._shelf.find(name)
            except Unreachable:
                raise
            except PromptmillError as error:
                self._known[name] = error
        known = self._known[name]
        if isinstance(known, PromptmillError):
            raise known
        return known

    def check_columns(self, frame: pl.DataFrame, source: Path) -> None:
        """Refuse a table that no row of can be answered."""
        if self._column and self._column not in frame.columns:
            raise PromptmillError(str(source), f'there is no column "{self._column}"', nearest_column(self._column, frame.columns))
        if self._name is None or self._column or not frame.columns:
            return
        fields = self.found(self._name).ready.encoding.fields
        missing = [name for name in fields if name not in frame.columns]
        if missing:
            what = f'there is no column "{missing[0]}", a field of the template of {self._name}'
            raise PromptmillError(str(source), what, nearest_column(missing[0], frame.columns))

    def key(self, chunk: Chunk, content: str) -> str:
        """What a part is made of, 32 hexadecimal digits: the input, which rows of it, and what its prompts are."""
        prompts = {}
        for given in sorted({given for given in self._names(chunk) if given}):
            try:
                prompts[given] = self.found(given).address + self.found(given).digest
            except Unreachable:
                raise
            except PromptmillError as error:
                prompts[given] = str(error)
        made_of = [prompt_core.__version__, content, chunk.first, len(chunk.numbers) + len(chunk.bad), self._name, self._column, prompts]
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]

    def answered(self, chunk: Chunk) -> tuple[pl.DataFrame, dict[int, str]]:
        """The rows that could be answered with their answers, and why the others could not."""
        bad = dict(chunk.bad)
        rows: dict[int, tuple[Shelved, Encoded]] = {}
        for number, given, fields in zip(chunk.numbers, self._names(chunk), chunk.rows, strict=True):
            try:
                rows[number] = self._row(given, fields)
            except PromptmillError as error:
                bad[number] = str(error)
        answers = _answers(rows, bad)
        kept = chunk.frame.filter(pl.Series([number in answers for number in chunk.numbers], dtype=pl.Boolean))
        of = [(rows[number][0], found) for number, found in answers.items()]
        values = [(found.text, found.score, prompt.version, prompt.digest) for prompt, found in of]
        columns = [pl.Series(name, [row[i] for row in values], dtype) for i, (name, dtype) in enumerate(ADDED.items())]
        return (kept.with_columns(columns) if kept.columns else pl.DataFrame(columns)), bad

    def _row(self, given: str | None, fields: Mapping[str, Any]) -> tuple[Shelved, Encoded]:
        if given is None:
            raise PromptmillError(str(self._column), "names no prompt", "Fill it in.")
        prompt = self.found(given)
        return prompt, prompt.ready.encode(fields)

    def _names(self, chunk: Chunk) -> list[str | None]:
        if self._column is None or self._column not in chunk.frame.columns:
            return [self._name] * len(chunk.numbers)
        return [self._name if given in (None, "") else str(given) for given in chunk.frame[self._column].to_list()]


def _answers(rows: Mapping[int, tuple[Shelved, Encoded]], bad: dict[int, str]) -> dict[int, Answer]:
    """The answers in the order of the rows; where a model refuses, the rows are halved until those stand alone that it refuses."""
    try:
        found = answer([(prompt.ready, example) for prompt, example in rows.values()])
    except PromptmillError as error:
        if len(rows) == 1:
            bad.update(dict.fromkeys(rows, str(error)))
            return {}
        items = list(rows.items())
        halves = items[: len(items) // 2], items[len(items) // 2 :]
        return {number: one for half in halves for number, one in _answers(dict(half), bad).items()}
    return dict(zip(rows, found, strict=True))
