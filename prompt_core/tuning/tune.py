"""`tune`: prepare, encode, start, optimise, and fold the result into an artifact."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from importlib.metadata import version

import polars as pl
import torch

import prompt_core
from prompt_core.artifact import DataRecord, Manifest, TunedPrompt
from prompt_core.backbone import Backbone, load_backbone
from prompt_core.data import prepare
from prompt_core.data.digest import frame_digest
from prompt_core.encoding import Encoded, TaskEncoding
from prompt_core.errors import PromptmillError
from prompt_core.prompts import starting_prompt
from prompt_core.task import TaskSpec
from prompt_core.tuning.build import build_objective, label_examples
from prompt_core.tuning.gradient import OnStep, optimise


def tune(
    task: TaskSpec,
    train: pl.DataFrame | None = None,
    validation: pl.DataFrame | None = None,
    backbone: Backbone | None = None,
    *,
    on_step: OnStep | None = None,
) -> TunedPrompt:
    """Tune the prompt of a task. Same task, data, backbone, versions and device: same digest.

    Args:
        task: what to tune and how.
        train, validation: example frames; by default the task's data is read, cleaned and split, and its test rows
            are left alone.
        backbone: the loaded frozen model; by default the task's own is loaded, once per process.
        on_step: called after every step with its loss, rate, speed and ETA.

    Raises:
        PromptmillError: the task, its data or its backbone cannot be used; the message says what to do.
    """
    if train is None:
        splits, _ = prepare(task)
        train, validation = splits.train, splits.validation
    if train.is_empty():
        raise PromptmillError(f"task {task.name}: data", "there is no training example", "Add rows.")
    validation = train.clear() if validation is None else validation
    backbone = backbone or load_backbone(task.backbone, task.folder)
    encoding = TaskEncoding(task, backbone)
    labels = tuple(sorted(train[task.data.target].unique())) if task.objective == "classify" else ()
    examples, held_out = encode_frame(task, encoding, train, labels), encode_frame(task, encoding, validation, labels)
    named = label_examples(task, encoding, backbone, labels)
    generator = torch.Generator().manual_seed(task.tune.seed)
    prompt = starting_prompt(task, encoding, backbone, generator)
    objective = build_objective(task, encoding, backbone, labels)
    record = optimise(prompt, objective, [*examples, *named], held_out, task.tune, generator, on_step)
    tensors = prompt.tensors() | objective.tensors()
    manifest = Manifest(
        name=task.name,
        kind=task.prompt.kind,
        tokens=next(iter(prompt.tensors().values())).shape[-3 if task.prompt.kind == "deep" else -2],
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        task=task.without_places(backbone.identity.name),
        labels=labels,
        max_new_tokens=_longest_answer(task, examples),
        backbone=backbone.identity,
        tuning=record,
        truncated_rows=sum(example.truncated for example in (*examples, *held_out)),
        data=DataRecord(
            train_rows=len(train),
            train=frame_digest(train),
            validation_rows=len(validation),
            validation=frame_digest(validation),
        ),
        versions={
            "promptmill": prompt_core.__version__,
            "python": ".".join(platform.python_version_tuple()[:2]),
            **{package: version(package) for package in ("torch", "transformers", "tokenizers")},
        },
        device=backbone.device.type,
    )
    return TunedPrompt(manifest, tensors, backbone.origin)


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
