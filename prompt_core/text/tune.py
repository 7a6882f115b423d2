"""`tune_text`: from a task to the best text prompt that a search finds for it, as an artifact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl
from torch import Tensor

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone, EncoderDecoder
from prompt_core.data.digest import frame_digest
from prompt_core.data.drift import profile_of
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError, nearest
from prompt_core.manifest import DataRecord, Manifest
from prompt_core.task import TaskSpec
from prompt_core.template import Template
from prompt_core.text.budget import Budget, OutOfBudget
from prompt_core.text.candidate import own_candidate
from prompt_core.text.choices import Choices
from prompt_core.text.copying import Copies
from prompt_core.text.edits import edited
from prompt_core.text.finals import Finals
from prompt_core.text.gradient import GradientEdits
from prompt_core.text.index import Embedder, embedding_model, retriever_of
from prompt_core.text.journal import Journal
from prompt_core.text.judge_anchors import AnchorJudge
from prompt_core.text.judge_likelihood import LikelihoodJudge
from prompt_core.text.own import OwnWords
from prompt_core.text.record import TextSearchRecord, TriedRecord
from prompt_core.text.reflection import Reflection
from prompt_core.text.remembered import Remembered
from prompt_core.text.search import Found, OnRound, Propose, TextSearch, Tried
from prompt_core.text.spec import TextSpec
from prompt_core.tuning.build import answer, label_ids
from prompt_core.tuning.folds import join_sides
from prompt_core.tuning.prepared import Sides, library_versions

_ID_DIGITS = 12
# What may change between two starts of a search without making its scores and proposals other ones.
_NOT_SCORED = {"owner", "evaluate", "gate", "drift", "deploy"}
_LIMITS = {"rounds", "patience", "max_tokens", "minutes"}
_PRICES = {"dollars", "dollars_per_million_read", "dollars_per_million_written"}
_ASKING = {"key_variable", "concurrency", "timeout", "attempts", "wait", *_PRICES}


def tune_text(
    task: TaskSpec, sides: Sides, backbone: Backbone, on_round: OnRound | None = None, checkpoints: Path | None = None
) -> TunedPrompt:
    """Search for the best text prompt of a task. Same task, data, backbone and versions: same digest, unless time ends it.

    Args:
        task: with `prompt.kind: text`.
        sides: its (train, validation) frames; their rows are searched together.
        backbone: the frozen causal model or encoder.
        on_round: called after every round.
        checkpoints: a folder for what was scored and answered, which an interrupted or longer search does not pay for again.

    Returns:
        The prompt; its `seconds` are those of the search, an interrupted one that it went on from included.

    Raises:
        PromptmillError: the task, its data, its backbone, its endpoint or its budget cannot be used.
    """
    return _Tuning(task, sides, backbone, checkpoints).run(on_round)


class _Tuning:
    """The parts of one search."""

    def __init__(self, task: TaskSpec, sides: Sides, backbone: Backbone, checkpoints: Path | None) -> None:
        self._task, self._sides, self._backbone = task, sides, backbone
        self._frame = join_sides(sides)
        self._rows: list[dict[str, Any]] = self._frame.rows(named=True)
        self._labels = _checked_labels(task, self._frame)
        _check_backbone(task, backbone)
        _check_template(task, self._frame)
        _check_tokens(task, self._rows, self._labels, backbone)
        spec = task.text
        self._budget = Budget(
            tokens=spec.max_tokens,
            seconds=None if spec.minutes is None else 60 * spec.minutes,
            dollars=spec.endpoint.dollars if spec.endpoint else None,
        )
        kept = checkpoints / f"text-{self._fingerprint()[:32]}.jsonl" if checkpoints else None
        self._journal = Journal(kept, self._budget.clock)
        self._retriever = retriever_of(task, backbone)

    def run(self, on_round: OnRound | None) -> TunedPrompt:
        try:
            model = embedding_model(self._retriever)
            choices = Choices(self._task, self._rows, self._features, model, encoder=not self._backbone.causal)
            found = TextSearch(self._task, self._judge, choices, self._proposers(), self._copies()).run(on_round)
        except OutOfBudget as limit:
            what = f"the budget of {limit} does not suffice for the task's own prompt"
            raise PromptmillError(f"task {self._task.name}: text", what, "Raise text.max_tokens or text.minutes.") from None
        finalists, metrics = self._finals(found)
        return self._artifact(found, finalists, metrics)

    @cached_property
    def _features(self) -> Tensor:
        """Of the rows, by which examples are near, float32 [n, H]; an encoder's judge has embedded them already."""
        if not self._backbone.causal:
            assert isinstance(self._judge, AnchorJudge)  # that of an encoder
            return self._judge.vectors(own_candidate(self._task))
        embed = Embedder(self._task, self._retriever)
        self._budget.charge(sum(map(len, embed.inputs(self._rows))))
        return embed(self._rows)

    @cached_property
    def _judge(self) -> AnchorJudge | LikelihoodJudge:
        common = (self._task, self._backbone, self._rows, self._labels, self._journal, self._budget)
        return LikelihoodJudge(*common, self._features) if self._backbone.causal else AnchorJudge(*common)

    def _finals(self, found: Found) -> tuple[list[Tried], list[float] | None]:
        """The finalists, the best first, and their metric where texts were written for it; the task's own prompt is among them."""
        judge = self._judge
        if self._labels or not isinstance(judge, LikelihoodJudge):
            return list(found.finalists), None
        best = list({tried.candidate.digest: tried for tried in [*found.finalists[: self._task.text.keep], found.tried[0]]}.values())
        finals = Finals(self._task, judge, self._backbone, self._longest(), self._journal)
        metrics = finals.measure([tried.candidate for tried in best])
        if metrics is None:
            return list(found.finalists), None
        penalty = self._task.text.length_penalty
        order = sorted(zip(best, metrics, strict=True), key=lambda pair: penalty * pair[0].tokens - pair[1] / 100)
        return [tried for tried, _ in order], [metric for _, metric in order]

    def _proposers(self) -> list[Propose]:
        task, backbone = self._task, self._backbone
        makers: list[tuple[str, Propose]] = [("gradient", GradientEdits(task, self._judge, backbone))]
        if backbone.causal:
            makers.append(("own words", OwnWords(task, self._judge, backbone)))
        proposers: list[Propose] = [Remembered(name, maker, self._journal, self._budget) for name, maker in makers]
        if task.text.endpoint:
            from prompt_core.text.endpoint import Endpoint  # the client takes long to load

            endpoint = Endpoint(task.text.endpoint, self._journal, self._budget)
            together = min(4, task.text.together)
            # What it is asked is remembered answer by answer: a question that had none is asked again.
            proposers.insert(0, Reflection(task, endpoint, lambda tried: self._judge.mistakes(tried.candidate), together))
        return [*proposers, lambda ranked, random: [edited([tried.candidate.wording for tried in ranked], random)]]

    def _copies(self) -> Copies:
        columns = [*Template(self._task).fields, self._task.data.target]
        return Copies(str(row[column]) for row in self._rows for column in columns)

    def _longest(self) -> int:
        encoding = TaskEncoding(self._task, self._backbone, soft=False)
        return self._task.longest_answer(len(encoding.encode_target(row[self._task.data.target])) for row in self._rows)

    def _artifact(self, found: Found, finalists: Sequence[Tried], metrics: Sequence[float] | None) -> TunedPrompt:
        task, backbone, best = self._task, self._backbone, finalists[0]
        train, validation = self._sides[0], self._sides[1]
        validation = train.clear() if validation is None else validation
        tensors = {"label_bias": self._judge.label_bias(best.candidate)} if best.candidate.calibrated else {}
        manifest = Manifest(
            name=task.name,
            kind="text",
            tokens=best.tokens,
            parameters=sum(tensor.numel() for tensor in tensors.values()),
            task=task.without_places(backbone.identity.name),
            labels=tuple(self._labels),
            max_new_tokens=None if self._labels else self._longest(),
            backbone=backbone.identity,
            text=best.candidate.prompt(task, self._judge.by_id, encoder=not backbone.causal),
            text_search=self._record(found, finalists, metrics),
            truncated_rows=self._judge.truncated(best.candidate),
            data=DataRecord(
                train_rows=len(train),
                train=frame_digest(train),
                validation_rows=len(validation),
                validation=frame_digest(validation),
                profile=profile_of(self._frame, task),
            ),
            versions=library_versions(),
            device=backbone.device.type,
        )
        return TunedPrompt(manifest, tensors, backbone.origin, {"text": round(self._budget.clock.seconds, 1)})

    def _record(self, found: Found, finalists: Sequence[Tried], metrics: Sequence[float] | None) -> TextSearchRecord:
        numbers = {tried.candidate.digest: number for number, tried in enumerate(found.tried)}
        measured = {t.candidate.digest: m for t, m in zip(finalists, metrics, strict=True)} if metrics else {}
        values = [measured.get(tried.candidate.digest, tried.value) for tried in finalists]
        front: list[tuple[float, Tried]] = []
        for value, tried in sorted(zip(values, finalists, strict=True), key=lambda pair: (pair[1].tokens, -pair[0])):
            if not front or value > front[-1][0]:
                front.append((value, tried))
        return TextSearchRecord(
            tried=tuple(_tried_record(tried, measured.get(tried.candidate.digest), not self._backbone.causal) for tried in found.tried),
            chosen=numbers[finalists[0].candidate.digest],
            pareto=tuple(numbers[tried.candidate.digest] for _, tried in front),
            rejected=dict(found.rejected),
            judged_by="accuracy + sureness / 10" if self._labels else self._task.gate_metric if metrics else "log-likelihood",
            ended=found.ended,
            rows=len(self._rows),
            tokens=self._budget.spent_tokens,
            dollars=round(self._budget.spent_dollars, 6),
            optuna=version("optuna"),
        )

    def _fingerprint(self) -> str:
        """SHA-256 of what decides the scores and proposals of the search."""
        content = _without(self._task.without_places(self._backbone.identity.name), _NOT_SCORED)
        content["text"] = _without(content["text"], _LIMITS)
        if self._task.text.endpoint:
            content["text"]["endpoint"] = _without(content["text"]["endpoint"], _ASKING)
        about = [content, frame_digest(self._frame), self._backbone.identity.model_dump(), library_versions(), version("optuna")]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _without(content: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in names}


def _tried_record(tried: Tried, metric: float | None, encoder: bool) -> TriedRecord:
    candidate = tried.candidate
    return TriedRecord(
        wording=candidate.wording,
        structure=candidate.structure,
        words=candidate.labels,
        shown=() if encoder else tuple(row[:_ID_DIGITS] for row in candidate.shown),
        retrieved=candidate.retrieval.count if candidate.retrieval else 0,
        exemplars=len(candidate.shown) if encoder else 0,
        calibrated=candidate.calibrated,
        tokens=tried.tokens,
        value=round(tried.value, 6) if tried.value > float("-inf") else None,
        rows=len(tried.values),
        metric=None if metric is None else round(metric, 4),
    )


def _checked_labels(task: TaskSpec, frame: pl.DataFrame) -> list[str]:
    where = f"task {task.name}"
    if frame.is_empty():
        raise PromptmillError(f"{where}: data", "there is no training example", "Add rows.")
    if task.writes:
        return []
    labels = sorted(frame[task.data.target].unique())
    if len(labels) < 2:
        found = f'only the label "{labels[0]}"' if labels else "no label"
        raise PromptmillError(f"{where}: data.target", f"has {found}", "A classifier needs examples of at least two.")
    for label in task.text.label_words:
        if label not in labels:
            raise PromptmillError(f"{where}: text.label_words", f'"{label}" is no label of the data', nearest(label, labels))
    return labels


def _check_backbone(task: TaskSpec, backbone: Backbone) -> None:
    where, name = f"task {task.name}", backbone.identity.name
    if isinstance(backbone, EncoderDecoder) or task.tags:
        what = f"text, but {name} is {'an encoder-decoder' if isinstance(backbone, EncoderDecoder) else 'an encoder that finds entities'}"
        raise PromptmillError(f"{where}: prompt.kind", what, "Use a causal model, or deep.")
    if not backbone.causal and "retrieved" in task.text.choices:
        what = f"retrieved, but {name} is an encoder, which reads no demonstrations"
        raise PromptmillError(f"{where}: text.choices", what, "Leave it out; examples count as exemplars of their labels.")
    others = ("exemplars",) if backbone.causal else ("demonstrations", "retriever")
    for field in others:
        if getattr(task.text, field) != TextSpec.model_fields[field].default:
            what = f"is for {'encoders' if backbone.causal else 'causal models'}, which {name} is not"
            raise PromptmillError(f"{where}: text.{field}", what, "Leave it out.")


def _check_tokens(task: TaskSpec, rows: Sequence[dict[str, Any]], labels: Sequence[str], backbone: Backbone) -> None:
    """Refuse label words without a token, labels with the same ones, and demonstrations that were asked for where not even the
    shortest one has room."""
    encoding = TaskEncoding(task, backbone, soft=False)
    label_ids(task, encoding, backbone, labels)
    for label, words in task.text.label_words.items():
        if empty := next((word for word in words if not encoding.encode_bare(word)), None):
            what = f"{empty!r}, for {label}, is no token of {backbone.identity.name}"
            raise PromptmillError(f"task {task.name}: text.label_words", what, "Name other words for it.")
    if backbone.causal and task.text.demonstrations and "demonstrations" in task.text.model_fields_set:
        shortest = min(rows, key=lambda row: sum(len(str(row[name])) for name in (*encoding.fields, task.data.target)))
        encoding.root_with_demonstrations([(shortest, answer(task, shortest[task.data.target]))])


def _check_template(task: TaskSpec, frame: pl.DataFrame) -> None:
    template, where = Template(task), f"task {task.name}: template"
    if template.soft_tokens:
        raise PromptmillError(where, "has soft(n), which no text can say", "Take it out, or use prompt.kind: soft.")
    for name in template.fields:
        if name not in frame.columns:
            raise PromptmillError(where, f'field "{name}" is no column of the data', nearest(name, set(frame.columns) - {"_id"}))
