"""A task made ready for the gradient loop, and what comes out of that made an artifact."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import polars as pl
import torch

import prompt_core
from prompt_core.artifact import DataRecord, Manifest, TunedPrompt, TuningRecord
from prompt_core.backbone import Backbone, EncoderDecoder
from prompt_core.data import prepare
from prompt_core.data.digest import frame_digest
from prompt_core.encoding import Encoded, TaskEncoding
from prompt_core.errors import PromptmillError
from prompt_core.prompts import starting_prompt
from prompt_core.task import TaskSpec
from prompt_core.tuning.build import answer, build_objective, describe, label_examples
from prompt_core.tuning.member import Part

Sides = tuple[pl.DataFrame, pl.DataFrame | None]


class Prepared:
    """A task with its examples encoded and its prompt at the start.

    Args:
        task: what to tune and how.
        sides: (train, validation) frames; None for the task's own data.
        backbone: the loaded frozen model.

    Attributes:
        prompt: where tuning starts; may be exchanged for one of the same kind before `part` is asked for.

    Raises:
        PromptmillError: the task, its data and its backbone do not fit each other.
    """

    def __init__(self, task: TaskSpec, sides: Sides | None, backbone: Backbone) -> None:
        if sides is None:
            splits, _ = prepare(task)
            sides = splits.train, splits.validation
        self.task, self._backbone = task, backbone
        self._train, self._validation = sides[0], sides[0].clear() if sides[1] is None else sides[1]
        if self._train.is_empty():
            raise PromptmillError(f"task {task.name}: data", "there is no training example", "Add rows.")
        encoding = TaskEncoding(task, backbone)
        self._labels = tuple(sorted(self._train[task.data.target].unique())) if task.objective == "classify" else ()
        self._examples = encode_frame(task, encoding, self._train, self._labels)
        self._held_out = encode_frame(task, encoding, self._validation, self._labels)
        self._named = label_examples(task, encoding, backbone, self._labels)
        self.generator = torch.Generator().manual_seed(task.tune.seed)
        self._source = _source(task, backbone)
        self.prompt = starting_prompt(
            task,
            encoding,
            backbone,
            self.generator,
            labels=[describe(task, label) for label in self._labels],
            demonstrations=_demonstrations(task, self._train),
            source=self._source,
        )
        self._objective = build_objective(task, encoding, backbone, self._labels)
        self._check_length()

    def _check_length(self) -> None:
        state, examples = self.prompt.state(), (*self._examples, *self._held_out)
        prompt, example = len(state.root) + state.keys.shape[1], max(map(self._objective.tokens, examples))
        if isinstance(self._backbone, EncoderDecoder):  # keys take no position there, nor does the target
            prompt, example = len(state.root), max(len(e.input) for e in examples)
        positions = self._backbone.max_positions
        if self._backbone.generates and prompt + example > positions:
            what = f"a prompt of {prompt} tokens and an example of {example} need more than the {positions} positions of the model"
            raise PromptmillError(f"task {self.task.name}: prompt.tokens", what, "Lower prompt.tokens or tune.max_tokens.")

    @property
    def part(self) -> Part:
        """What the gradient loop needs of it."""
        return Part(self.prompt, self._objective, [*self._examples, *self._named], self._held_out)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides what the tuning gives."""
        return hashlib.sha256(self._manifest(TuningRecord(steps=0, kept_step=0, train_loss=(), validation=())).canonical()).hexdigest()

    def artifact(self, record: TuningRecord) -> TunedPrompt:
        """The tuned prompt, with what is to be known about it."""
        return TunedPrompt(self._manifest(record), self.prompt.tensors() | self._objective.tensors(), self._backbone.origin)

    def _manifest(self, record: TuningRecord) -> Manifest:
        task, backbone, prompt = self.task, self._backbone, self.prompt.tensors()
        return Manifest(
            name=task.name,
            kind=task.prompt.kind,
            tokens=prompt["keys"].shape[1] if task.prompt.kind == "deep" else len(prompt["embeddings"]),
            parameters=sum(tensor.numel() for tensor in (prompt | self._objective.tensors()).values()),
            task=task.without_places(backbone.identity.name),
            labels=self._labels,
            max_new_tokens=_longest_answer(task, self._examples),
            backbone=backbone.identity,
            started_from=self._source.digest if self._source else None,
            tuning=record,
            truncated_rows=sum(example.truncated for example in (*self._examples, *self._held_out)),
            data=DataRecord(
                train_rows=len(self._train),
                train=frame_digest(self._train),
                validation_rows=len(self._validation),
                validation=frame_digest(self._validation),
            ),
            versions={
                "promptmill": prompt_core.__version__,
                "python": ".".join(platform.python_version_tuple()[:2]),
                **{package: version(package) for package in ("torch", "transformers", "tokenizers")},
            },
            device=backbone.device.type,
        )


def _source(task: TaskSpec, backbone: Backbone) -> TunedPrompt | None:
    if task.prompt.start_from is None:
        return None
    source = TunedPrompt.load(task.locate(task.prompt.start_from))
    source.check_base(backbone.identity)
    return source


def _demonstrations(task: TaskSpec, train: pl.DataFrame) -> list[tuple[dict[str, Any], str]]:
    """Training examples with their answers; ids are hashes, so their order is a fair draw."""
    rows = train.sort("_id").head(task.prompt.demonstrations).iter_rows(named=True)
    return [(row, answer(task, row[task.data.target])) for row in rows]


def encode_frame(task: TaskSpec, encoding: TaskEncoding, frame: pl.DataFrame, labels: Sequence[str]) -> list[Encoded]:
    """The rows of an example frame as token ids; a label is its index.

    Raises:
        PromptmillError: a label that is not among `labels`.
    """
    rows = []
    for fields in frame.iter_rows(named=True):
        target = fields[task.data.target]
        if task.objective == "generate":
            rows.append(encoding.encode(fields, target))
        elif target in labels:
            rows.append(dataclasses.replace(encoding.encode(fields), target=(labels.index(target),)))
        else:
            raise PromptmillError(f"task {task.name}: data.{task.data.target}", f'label "{target}" has no training example', "Add some.")
    return rows


def _longest_answer(task: TaskSpec, train: Sequence[Encoded]) -> int | None:
    if task.objective != "generate":
        return None
    return task.evaluate.max_new_tokens or -(-5 * max(len(example.target) for example in train) // 4)
