"""The first rung of a ladder: text prompts for the folds and for all rows, each searched once, within one budget."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.deploy import kinds_for
from prompt_core.errors import PromptmillError
from prompt_core.task import TaskSpec
from prompt_core.task_file import parse_task
from prompt_core.text.search import OnRound, Round
from prompt_core.text.tune import tune_text
from prompt_core.tuning.fingerprint import fingerprint
from prompt_core.tuning.folds import folds_of, join_sides, not_held_out
from prompt_core.tuning.parallel import by_first, is_writer
from prompt_core.tuning.prepared import Sides
from prompt_core.tuning.starts import Starts

_FOR_GRADIENTS = {"search", "calibrate", "self_training", "loss", "head"}  # settings of `tune` that a text prompt has no use for
_SHARE_OF_MINUTES = 0.5  # of the ladder's time, unless the file says otherwise


class Texts:
    """Searches for words.

    With validation rows there is one search, on the training rows; else one without each fold's rows and one on all rows. Each
    has a share of the budget by its rows. What is found is on disk before the next search begins.

    Args:
        task: with `prompt.kind: auto` and the part `text`.
        sides: its (train, validation) frames.
        backbone: the frozen causal model.
        on_round: called after every round of every search.
        checkpoints: a folder for what was found and paid for.

    Raises:
        PromptmillError: there are too few examples for the folds.
    """

    def __init__(self, task: TaskSpec, sides: Sides, backbone: Backbone, on_round: OnRound | None, checkpoints: Path | None) -> None:
        assert task.search  # every `auto` has one
        self._task, self._backbone, self._on_round, self._checkpoints = task, backbone, on_round, checkpoints
        self._rows = join_sides(sides)
        self.validates = sides[1] is not None and not sides[1].is_empty()
        if self.validates:
            assert sides[1] is not None  # just seen
            held_out = set(sides[1]["_id"]) - set(sides[0]["_id"])
            self._folds = [[number for number, row in enumerate(self._rows["_id"]) if row in held_out]]
        else:
            _check_labels(task, self._rows)
            self._folds = folds_of(self._rows, task, task.search.folds)
        self._name = fingerprint(task, self._rows, backbone, self._folds)[:32]

    def search(self) -> Starts:
        """The text prompts, from disk where an interrupted ladder has found them before.

        Raises:
            PromptmillError: as `tune_text`.
        """
        seen = [not_held_out(held_out, len(self._rows)) for held_out in self._folds]
        titles = ["text"] if self.validates else [f"text without fold {n} of {len(seen)}" for n in range(1, len(seen) + 1)]
        searched = seen if self.validates else [*seen, list(range(len(self._rows)))]
        shares = [len(numbers) / sum(map(len, searched)) for numbers in searched]
        found = [
            by_first(partial(self._once, number, numbers, share, title))
            for number, (numbers, share, title) in enumerate(zip(searched, shares, [*titles, "text"], strict=False))
        ]
        seconds = sum(text.seconds["text"] for text in found)
        return Starts(self._folds, found[: len(seen)], found[-1], seconds)

    def close(self) -> None:
        """Remove what an interrupted ladder would have gone on from; what was paid for stays with the searches."""
        if self._checkpoints and is_writer():
            for folder in self._checkpoints.glob(f"{self._name}-text-*"):
                shutil.rmtree(folder)

    def _once(self, number: int, rows: Sequence[int], share: float, title: str) -> TunedPrompt:
        folder = self._checkpoints / f"{self._name}-text-{number}" if self._checkpoints else None
        if folder and folder.exists():
            return TunedPrompt.load(folder)
        task, sides = as_text_task(self._task, share), (self._rows[list(rows)], None)
        found = tune_text(task, sides, self._backbone, self._titled(title), self._checkpoints)
        if folder:
            found.save(folder)
        return found

    def _titled(self, title: str) -> OnRound | None:
        on_round = self._on_round
        if on_round is None:
            return None

        def report(shown: Round) -> None:
            on_round(replace(shown, task=f"{shown.task}, {title}"))

        return report


def _check_labels(task: TaskSpec, rows: pl.DataFrame) -> None:
    """Who searches words without a fold's rows has to know every label from the others."""
    if task.objective != "classify":
        return
    target = task.data.target
    if alone := rows[target].value_counts().filter(pl.col("count") == 1)[target].sort().to_list():
        what = f'label "{alone[0]}" has one example, which some fold holds out'
        raise PromptmillError(f"task {task.name}: data.target", what, "Add another one, or hold out validation rows.")


def as_text_task(task: TaskSpec, share: float) -> TaskSpec:
    """The task of kind text, with a share of what its text searches may spend together. Where no text runs in all stacks that `deploy`
    names, it names none: the text is then a start alone."""
    content: dict[str, Any] = task.model_dump(mode="json", exclude_unset=True)
    if "text" not in kinds_for(task.deploy):
        del content["deploy"]
    content["prompt"] = {"kind": "text"}
    content["tune"] = {name: value for name, value in content.get("tune", {}).items() if name not in _FOR_GRADIENTS}
    text, endpoint = task.text, task.text.endpoint
    minutes = text.minutes
    if minutes is None and task.search and task.search.minutes is not None:
        minutes = _SHARE_OF_MINUTES * task.search.minutes
    if minutes is not None:
        content["text"]["minutes"] = share * minutes
    if text.max_tokens is not None:
        content["text"]["max_tokens"] = max(1, int(share * text.max_tokens))
    if endpoint and endpoint.dollars is not None:
        content["text"]["endpoint"]["dollars"] = share * endpoint.dollars
    return parse_task(content, f"task {task.name}", task.folder)
