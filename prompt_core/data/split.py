"""Splitting: train, validation and test by content hash, so that a row never changes side when data grows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import polars as pl

from prompt_core.data.clean import CleaningReport, check_labels, clean, example_id, named, remove_unusable
from prompt_core.data.leakage import remove_leakage
from prompt_core.data.read import read_examples, read_unlabelled
from prompt_core.errors import PromptmillError, kind_of_fault, nearest
from prompt_core.extraction.spans import entity_labels
from prompt_core.task import TaskSpec
from prompt_core.template import Template

_SIDES = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Splits:
    """The three sides of a task's examples: frames with `_id` and the task's columns, sorted by `_id`."""

    train: pl.DataFrame
    validation: pl.DataFrame
    test: pl.DataFrame

    @cached_property
    def digest(self) -> str:
        """SHA-256 (64 hex characters) over the content of the sides, whatever the order of rows in their source."""
        content = hashlib.sha256()
        for side in _SIDES:
            frame: pl.DataFrame = getattr(self, side)
            columns = sorted(frame.columns)
            content.update(json.dumps([side, columns, sorted(frame.select(columns).rows())]).encode())
        return content.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write `folder` anew with train.parquet, validation.parquet and test.parquet; a crash leaves no mixture."""
        folder = Path(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            new, old = beside / "new", beside / "old"
            new.mkdir()
            for side in _SIDES:
                getattr(self, side).write_parquet(new / f"{side}.parquet")
            if folder.exists():
                folder.replace(old)
            new.replace(folder)
        finally:
            shutil.rmtree(beside)

    @classmethod
    def load(cls, folder: str | Path) -> Splits:
        """What `save` wrote.

        Raises:
            PromptmillError: a file is missing or damaged.
        """
        sides = {}
        for side in _SIDES:
            path = Path(folder) / f"{side}.parquet"
            try:
                sides[side] = pl.read_parquet(path, glob=False)
            except (pl.exceptions.PolarsError, OSError) as error:
                what = "is missing" if not path.exists() else f"cannot be read ({str(error).splitlines()[0]})"
                raise kind_of_fault(error)(str(path), what, "Make the splits again.") from None
        return cls(**sides)


def split(frame: pl.DataFrame, task: TaskSpec, test_frame: pl.DataFrame | None = None) -> Splits:
    """Divide examples by the hash of their text and `data.test` and `data.validation`, the shares of each side.

    Args:
        frame: what `clean` returns.
        test_frame: rows of a test file; then they are the test side and `frame` becomes train and validation alone.

    Raises:
        PromptmillError: a side that should have rows has none, or a held-out label has no training example.
    """
    where = f"task {task.name}: data"
    test_share = task.data.test if test_frame is None else 0.0
    held_out = test_share + task.data.validation
    if held_out >= 1:
        raise PromptmillError(where, f"test and validation take {held_out:g} of the rows, which leaves nothing to train on", "Lower them.")
    draw = _draw(frame)
    splits = Splits(
        train=_ordered(frame.filter(draw >= held_out)),
        validation=_ordered(frame.filter((draw >= test_share) & (draw < held_out))),
        test=_ordered(frame.filter(draw < test_share) if test_frame is None else test_frame),
    )
    shares = {"train": 1.0, "validation": task.data.validation, "test": 1.0}
    for side in _SIDES:
        if shares[side] and getattr(splits, side).is_empty():
            what = f"none of {len(frame)} usable rows falls on the side for {side}"
            raise PromptmillError(where, what, f"Add examples or change {_shares(task)}.")
    _check_coverage(splits, task)
    return splits


def prepare(task: TaskSpec) -> tuple[Splits, CleaningReport]:
    """Everything between a task file and its splits: read, clean, keep train and validation clear of the test file, split.

    Raises:
        PromptmillError: as `read_examples`, `clean` and `split`.
    """
    frame, report = clean(read_examples(task), task)
    if task.data.test_path is None:
        return split(frame, task), report
    test, test_report = _test_rows(task, task.data.test_path)
    frame, leakage = remove_leakage(frame, test, Template(task).fields, task.data.near_duplicate)
    if frame.is_empty():
        raise PromptmillError(f"task {task.name}: data.path", "every row stands in data.test_path too", "Give two different files.")
    check_labels(frame, task)
    examples = {**report.examples, **({"leaked": leakage.examples} if leakage else {})}
    report = dataclasses.replace(
        report, rows_kept=len(frame), leaked=leakage.exact + leakage.near, examples=examples, test_file=test_report
    )
    return split(frame, task, test), report


def unlabelled_inputs(task: TaskSpec) -> pl.DataFrame:
    """The inputs of `data.unlabelled` that may be read before the evaluation: `outside_test`; no row where the task names no file.

    Raises:
        PromptmillError: as `read_unlabelled`, and as `read_examples` of the test file.
    """
    return outside_test(read_unlabelled(task), task)


def outside_test(inputs: pl.DataFrame, task: TaskSpec) -> pl.DataFrame:
    """Inputs that are no test row, now or when they get a label: by the rule that splits labelled rows, or not in the test file.

    Args:
        inputs: the template's fields.

    Returns:
        Those, each text once, with `_id`, in the order of that.

    Raises:
        PromptmillError: as `read_examples`, of the test file.
    """
    fields = Template(task).fields
    ids = pl.Series("_id", [example_id(values) for values in inputs.select(fields).rows()], dtype=pl.String)
    frame = inputs.select(ids, *fields).sort("_id", *fields).unique("_id", keep="first", maintain_order=True)
    if task.data.test_path is None or frame.is_empty():
        return frame.filter(_draw(frame) >= task.data.test)
    test, _ = _test_rows(task, task.data.test_path)
    return frame.filter(~pl.col("_id").is_in(test["_id"].implode()))


def _test_rows(task: TaskSpec, path: str) -> tuple[pl.DataFrame, CleaningReport]:
    """The usable rows of the test file; what is wrong with them is said of this file."""
    examples = read_examples(task, task.locate(path))
    try:
        return remove_unusable(examples, task)
    except PromptmillError as error:
        raise PromptmillError(f"task {task.name}: data.test_path", f'in "{path}" {error.what}', error.fix) from None


def _draw(frame: pl.DataFrame) -> pl.Series:
    """The first 12 hex characters of a text's hash: a uniform draw from [0, 1) that belongs to the text alone."""
    return pl.Series([int(_id[:12], 16) / 16**12 for _id in frame["_id"]], dtype=pl.Float64)


def _ordered(frame: pl.DataFrame) -> pl.DataFrame:
    """Sorted by `_id`, and where a text stands with several targets by all columns: an order of content alone."""
    return frame.sort("_id", *sorted(set(frame.columns) - {"_id"}))


def _check_coverage(splits: Splits, task: TaskSpec) -> None:
    if task.writes:
        return
    target = task.data.target
    if task.objective == "classify":
        _check_named_labels({label for side in _SIDES for label in getattr(splits, side)[target]}, task)
    labels = entity_labels if task.tags else set[str]
    told_apart = {task.evaluate.out_of_scope}  # of test rows: how sure a prompt is of the others is measured on them
    taught = labels(splits.train[target])
    held_out, tested = labels(splits.validation[target]), labels(splits.test[target]) - told_apart
    if task.data.test_path and (untaught := sorted(tested - taught - held_out)):
        what = f'"{task.data.test_path}" has labels without an example in data.path: {named(untaught)}'
        raise PromptmillError(f"task {task.name}: data.test_path", what, "Add examples for them, or take these rows out of the test file.")
    if untaught := sorted((held_out | tested) - taught):
        what = f'column "{target}" has labels without a training example: {named(untaught)}'
        raise PromptmillError(f"task {task.name}: data.target", what, f"Add examples for them or lower {_shares(task)}.")


def _shares(task: TaskSpec) -> str:
    """The fields that hold rows out of the training examples."""
    return "data.validation" if task.data.test_path else "data.test and data.validation"


def _check_named_labels(known: set[str], task: TaskSpec) -> None:
    """Refuse a label of the task file that no usable row has: a typing mistake, whose description nobody would read."""
    named_in = {"labels": task.labels, "evaluate.out_of_scope": [label] if (label := task.evaluate.out_of_scope) else []}
    for field, names in named_in.items():
        for name in names:
            if name not in known:
                raise PromptmillError(f"task {task.name}: {field}", f'"{name}" is no label of the data', nearest(name, known))
