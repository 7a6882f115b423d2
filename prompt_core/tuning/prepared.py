"""A task made ready for the gradient loop, and what comes out of that made an artifact."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import polars as pl
import torch

import prompt_core
from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone, EncoderDecoder
from prompt_core.data import prepare, unlabelled_inputs
from prompt_core.data.demonstrations import fair_draw
from prompt_core.data.digest import frame_digest
from prompt_core.data.drift import profile_of
from prompt_core.encoded import Encoded, Taught
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError
from prompt_core.extraction.spans import entity_labels
from prompt_core.manifest import DataRecord, DistillRecord, EntityRecord, Manifest, TuningRecord
from prompt_core.methods import TuneSpec
from prompt_core.prompts import Compactions, Context, Prompt, starting_prompt
from prompt_core.room import room_for_input
from prompt_core.task import TaskSpec
from prompt_core.teacher import Teacher
from prompt_core.trials import SearchRecord
from prompt_core.tuning.build import answer, build_objective, continue_from, describe, label_examples
from prompt_core.tuning.calibration import Calibration
from prompt_core.tuning.contrastive import check_pairs
from prompt_core.tuning.member import Part, twin
from prompt_core.tuning.objective import Classification
from prompt_core.tuning.tags import Tagged, tagged

_WEIGHT_OF_LABELLED = 4  # times, beside examples whose labels are the prompt's own

Sides = tuple[pl.DataFrame, pl.DataFrame | None]


class Prepared:
    """A task with its examples encoded and its prompt at the start.

    Args:
        task: what to tune and how.
        sides: (train, validation) frames; None for the task's own data.
        backbone: the loaded frozen model.
        search: what chose the task's settings, for the manifest.
        source: what `prompt.start: prompt` starts from; by default `prompt.start_from` is read. Where it is a text prompt, its
            template and label words take the place of the task's.
        compactions: where a distillation's start finds what was made for other trials of its search.

    Attributes:
        labels: of a classifier, sorted.
        encoding: how its inputs are read.
        prompt: where tuning starts; may be exchanged for one of the same kind before `part` is asked for.
        lessons: further examples, whose labels the prompt of a round before has given.
        found: further parts of the manifest, about what came before.
        seconds: of what came before, by name.

    Raises:
        PromptmillError: the task, its data and its backbone do not fit each other.
    """

    def __init__(
        self,
        task: TaskSpec,
        sides: Sides | None,
        backbone: Backbone,
        search: SearchRecord | None = None,
        source: TunedPrompt | None = None,
        compactions: Compactions | None = None,
    ) -> None:
        sides = sides or own_sides(task)
        self._source = source or _source(task, backbone)
        if self._source and self._source.manifest.text:
            task = self._source.manifest.text.applied_to(task)
        self.task, self._backbone, self._search = task, backbone, search
        self.found: dict[str, Any] = {}
        self.seconds: dict[str, float] = {}
        self.lessons: Sequence[Encoded] = ()
        self._train, self._validation = sides[0], sides[0].clear() if sides[1] is None else sides[1]
        if self._train.is_empty():
            raise PromptmillError(f"task {task.name}: data", "there is no training example", "Add rows.")
        encoding = self.encoding = TaskEncoding(task, backbone)
        self.labels = _labels(task, self._train)
        self._demonstrations = _demonstrations(task, self._train) if task.data.target else []
        self._compactions = compactions or Compactions()
        self._teacher = Teacher(task, backbone, self._train) if task.objective == "distill" else None
        self._examples: Sequence[Encoded]
        self._held_out: Sequence[Encoded]
        if self._teacher:
            self._shown: frozenset[int] = frozenset()  # lessons are several to a row, and in the teacher's words
            self._examples = self._teacher.lessons(self._train, encoding, training=True)
            if not self._examples:
                what = f"all {len(self._train)} training rows are shown to the teacher, and none is left to learn from"
                raise PromptmillError(f"task {task.name}: distill.demonstrations", what, "Add inputs, which need no answers, or lower it.")
            self._held_out = self._teacher.lessons(self._validation, encoding)
        else:
            self._shown = _numbers_of(_shown(task, self._demonstrations, self._source), self._train, encoding.fields)
            self._examples = encode_frame(task, encoding, self._train, self.labels)
            self._held_out = encode_frame(task, encoding, self._validation, self.labels)
        self._named = label_examples(task, encoding, backbone, self.labels)
        self._profile = profile_of(pl.concat([self._train, self._validation]), task)
        self.prompt, self.generator = self._started(range(len(self._train)))
        self._objective = build_objective(task, encoding, backbone, self.labels)
        if self._source and self._source.manifest.labels == self.labels:
            continue_from(self._objective, self._source)
        if task.tune.contrastive:
            check_pairs(task, [*self._examples, *self._named], self._held_out)
        self._unlabelled = unlabelled_inputs(task) if task.reads_unlabelled else self._train.clear()
        if isinstance(self._objective, Classification) and task.tune.calibrate:
            self._objective.calibration = Calibration(self._encoded(self._unlabelled), task.tune.batch_tokens)
        self._check_length()

    def _started(self, numbers: Sequence[int]) -> tuple[Prompt, torch.Generator]:
        task, teacher, context = self.task, self._teacher, None
        if teacher:
            texts = [(*e.input, *e.target[:-1]) for e in self.examples(numbers)]
            context = Context(teacher.root, lambda: teacher.state, texts, self._compactions)
        generator = torch.Generator().manual_seed(task.tune.seed)
        labels = [describe(task, label) for label in self.labels]
        prompt = starting_prompt(task, self.encoding, self._backbone, generator, labels, self._demonstrations, self._source, context)
        return prompt, generator

    def _check_length(self) -> None:
        state, examples = self.prompt.state(), (*self._examples, *self._held_out)
        prompt, example = len(state.root) + state.keys.shape[1], max(map(self._objective.tokens, examples))
        if isinstance(self._backbone, EncoderDecoder):  # keys take no position there, nor does the target
            prompt, example = len(state.root), max(len(e.input) for e in examples)
        positions = self._backbone.max_positions
        if self._backbone.generates and prompt + example > positions:
            what = f"a prompt of {prompt} tokens and an example of {example} need more than the {positions} positions of the model"
            raise PromptmillError(f"task {self.task.name}: prompt.tokens", what, "Lower prompt.tokens or tune.max_tokens.")

    def _encoded(self, unlabelled: pl.DataFrame) -> list[Encoded]:
        """Inputs of a classifier, cut so that prompt and labels have positions too: no example tells how long they may be."""
        room = room_for_input(self._backbone, self.prompt.state(), self._objective)
        return [self.encoding.encode(row, room=room) for row in unlabelled.iter_rows(named=True)]

    @property
    def part(self) -> Part:
        """What the gradient loop needs of it."""
        train = self.learned_from(range(len(self._train)))
        if self.lessons:
            train = [*train * _WEIGHT_OF_LABELLED, *self.lessons]
        return Part(self.prompt, self._objective, train, self._held_out)

    @property
    def spec(self) -> TuneSpec:
        """How it is tuned; with lessons steps that were left out suffice for one round over all."""
        spec = self.task.tune
        if not self.lessons or spec.steps:
            return spec
        steps = max(spec.steps_for(len(self._examples)), spec.steps_for(len(self.part.train), rounds=1))
        return spec.model_copy(update={"steps": steps})

    def unlabelled(self, most: int) -> list[Encoded]:
        """So many inputs of `data.unlabelled` at most, encoded; none that has a label or names one.

        Raises:
            PromptmillError: there is none.
        """
        labelled = {example.input for example in (*self._examples, *self._held_out, *self._named)}
        inputs = [example for example in self._encoded(self._unlabelled.head(most)) if example.input not in labelled]
        if not inputs:
            what = "no input is left without those that may be test rows or have a label"
            raise PromptmillError(f"task {self.task.name}: data.unlabelled", what, "Add inputs.")
        return inputs

    def twin(self) -> Prepared:
        """A copy as it stands, to be tuned apart."""
        other = copy.copy(self)
        other.prompt, other._objective = twin(self.prompt, self._backbone), twin(self._objective, self._backbone)
        other.generator = torch.Generator()
        other.generator.set_state(self.generator.get_state())
        other.found, other.seconds = dict(self.found), dict(self.seconds)
        return other

    def start(self, numbers: Sequence[int]) -> tuple[Prompt, torch.Generator]:
        """Where a tuning on these training rows alone starts, and the random stream behind that: what a distillation starts from has
        read lessons, and of no other rows then. Else a copy of the prompt as it stands."""
        if self._teacher:
            return self._started(numbers)
        generator = torch.Generator()
        generator.set_state(self.generator.get_state())
        return twin(self.prompt, self._backbone), generator

    def learned_from(self, numbers: Sequence[int]) -> list[Encoded]:
        """What is learned from: the examples of these training rows and the labels' names.

        Examples that stand in the prompt that tuning starts from would teach it to copy: they are left out, unless there are no others.
        """
        others = [number for number in numbers if number not in self._shown] or numbers
        return [*self.examples(others), *self._named]

    def examples(self, numbers: Sequence[int]) -> list[Encoded]:
        """Of these training rows: one each, or the lessons that a teacher gave, which may be several or none."""
        if not self._teacher:
            return [self._examples[number] for number in numbers]
        rows = set(self._train["_id"].gather(list(numbers)))
        return [example for example in self._examples if isinstance(example, Taught) and example.row in rows]

    @property
    def tokens(self) -> int:
        """Length of the prompt."""
        prompt = self.prompt.tensors()
        return prompt["keys"].shape[1] if self.task.prompt.kind == "deep" else len(prompt["embeddings"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides what the tuning gives."""
        return hashlib.sha256(self._manifest(TuningRecord(steps=0, kept_step=0, train_loss=(), validation=())).canonical()).hexdigest()

    def artifact(self, record: TuningRecord) -> TunedPrompt:
        """The tuned prompt, with what is to be known about it."""
        tensors = self.prompt.tensors() | self._objective.tensors()
        return TunedPrompt(self._manifest(record), tensors, self._backbone.origin, self.seconds)

    def _manifest(self, record: TuningRecord) -> Manifest:
        task, backbone, prompt = self.task, self._backbone, self.prompt.tensors()
        return Manifest(
            name=task.name,
            kind="soft" if task.prompt.kind == "soft" else "deep",
            tokens=self.tokens,
            parameters=sum(tensor.numel() for tensor in (prompt | self._objective.tensors()).values()),
            task=task.without_places(backbone.identity.name),
            labels=self.labels,
            max_new_tokens=task.longest_answer(len(example.target) for example in self._examples) if task.writes else None,
            backbone=backbone.identity,
            distilled=DistillRecord(tokens=len(self._teacher.root), teacher=self._teacher.digest) if self._teacher else None,
            started_from=self._source.digest if self._source else None,
            search=self._search,
            **self.found,
            tuning=record,
            entities=_entities((*self._examples, *self._held_out)),
            truncated_rows=sum(example.truncated for example in (*self._examples, *self._held_out)),
            data=DataRecord(
                train_rows=len(self._train),
                train=frame_digest(self._train),
                validation_rows=len(self._validation),
                validation=frame_digest(self._validation),
                unlabelled_rows=len(self._unlabelled),
                unlabelled=frame_digest(self._unlabelled) if len(self._unlabelled) else None,
                profile=self._profile,
            ),
            versions=library_versions(),
            device=backbone.device.type,
        )


def library_versions() -> dict[str, str]:
    """Of what decides the numbers of a tuning; scikit-learn fits its logistic head and the probe beside it."""
    return {
        "promptmill": prompt_core.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
        **{package: version(package) for package in ("torch", "transformers", "tokenizers", "scikit-learn")},
    }


def own_sides(task: TaskSpec) -> Sides:
    """The (train, validation) frames of a task's own data; its test rows stay where they are."""
    splits, _ = prepare(task)
    return splits.train, splits.validation


def _source(task: TaskSpec, backbone: Backbone) -> TunedPrompt | None:
    if task.prompt.start_from is None:
        return None
    source = TunedPrompt.load(task.locate(task.prompt.start_from))
    source.check_base(backbone.identity)
    return source


def _demonstrations(task: TaskSpec, train: pl.DataFrame) -> list[tuple[dict[str, Any], str]]:
    """Training examples with their answers."""
    rows = fair_draw(train, task.prompt.demonstrations).iter_rows(named=True)
    return [(row, answer(task, row[task.data.target])) for row in rows]


def _shown(task: TaskSpec, demonstrations: Sequence[tuple[dict[str, Any], str]], source: TunedPrompt | None) -> list[Mapping[str, Any]]:
    """The fields of the examples that stand in the prompt that tuning starts from."""
    if task.prompt.start == "demonstrations":
        return [fields for fields, _ in demonstrations]
    if task.prompt.start == "prompt" and source and source.manifest.text:
        return [shown.fields for shown in source.manifest.text.demonstrations]
    return []


def _numbers_of(shown: Sequence[Mapping[str, Any]], train: pl.DataFrame, names: Sequence[str]) -> frozenset[int]:
    """The rows with these fields."""
    known = {tuple(str(fields[name]) for name in names) for fields in shown}
    rows = train.iter_rows(named=True) if known else ()
    return frozenset(number for number, row in enumerate(rows) if tuple(str(row[name]) for name in names) in known)


def encode_frame(task: TaskSpec, encoding: TaskEncoding, frame: pl.DataFrame, labels: Sequence[str]) -> list[Encoded]:
    """The rows of an example frame as token ids; a label is its index.

    Raises:
        PromptmillError: a label that is not among `labels`.
    """
    rows: list[Encoded] = []
    for fields in frame.iter_rows(named=True):
        target = fields[task.data.target]
        if task.tags:
            rows.append(tagged(encoding.locate(fields), target, labels, f"task {task.name}: data.target"))
        elif task.writes:
            rows.append(encoding.encode(fields, target))
        elif target in labels:
            rows.append(dataclasses.replace(encoding.encode(fields), target=(labels.index(target),)))
        else:
            raise PromptmillError(f"task {task.name}: data.{task.data.target}", f'label "{target}" has no training example', "Add some.")
    return rows


def _labels(task: TaskSpec, train: pl.DataFrame) -> tuple[str, ...]:
    if task.writes:
        return ()
    targets, where = train[task.data.target], f"task {task.name}: data.target"
    try:
        labels = tuple(sorted(entity_labels(targets) if task.tags else targets.unique()))
    except (ValueError, TypeError, LookupError):
        raise PromptmillError(where, "has a row that is no list of entities", "Give frames as `prompt_core.data.prepare` does.") from None
    if not labels:
        raise PromptmillError(where, "has no entity in any training row", "Add examples that have some.")
    return labels


def _entities(examples: Sequence[Encoded]) -> EntityRecord | None:
    tagged = [example for example in examples if isinstance(example, Tagged)]
    if not tagged:
        return None
    found, rounded, lost = (sum(getattr(example, name) for example in tagged) for name in ("entities", "rounded", "lost"))
    return EntityRecord(found=found, rounded=rounded, lost=lost)
