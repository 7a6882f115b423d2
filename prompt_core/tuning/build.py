"""Which objective a task gets on its backbone, and where that objective's own parameters start."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

import torch

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone, EncoderDecoder
from prompt_core.encoded import Encoded
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError
from prompt_core.parts import all_texts
from prompt_core.prompts import PromptState
from prompt_core.task import TaskSpec
from prompt_core.tuning.contrastive import ContrastedAnchors, Contrastive, RefittedAnchors, pairs_loss, supervised_contrastive_loss
from prompt_core.tuning.distillation import Distillation
from prompt_core.tuning.objective import Classification, Generation, LabelAnchors, LabelWords, Objective, Transduction, embed_texts
from prompt_core.tuning.tags import TokenTags
from prompt_core.tuning.vocabulary import VocabularyWords

_BETWEEN_WORDS = re.compile(r"(?<=[^\W_])[-_]+(?=[^\W_])")  # a hyphen or underscore that stands for a space, not for a minus
_LOSSES = {True: ("label_set", "vocabulary"), False: ("label_set", "pairs", "supervised_contrastive")}  # by whether the model is causal
_IDLE = {True: ("contrast", "anchor_scale"), False: ("label_score",)}  # settings that change nothing, likewise


def build_objective(task: TaskSpec, encoding: TaskEncoding, backbone: Backbone, labels: Sequence[str]) -> Objective:
    """The objective of a task: a teacher's distributions for `distill`, generation where it writes, tags for the tokens of an
    encoder, else that of `tune.loss`.

    Raises:
        PromptmillError: a loss, head or other setting that is not the backbone's, a head for one label; or as `label_ids`.
    """
    if task.objective == "distill":
        return Distillation(backbone)
    smoothing = task.tune.label_smoothing
    if task.tags:
        return TokenTags(backbone, labels, smoothing)
    if task.writes:
        return Transduction(backbone, smoothing) if isinstance(backbone, EncoderDecoder) else Generation(backbone, smoothing)
    spec, fitting = task.tune, _LOSSES[backbone.causal]
    if spec.loss not in fitting:
        what = f"{spec.loss} is not for {backbone.identity.name}, {'a causal model' if backbone.causal else 'an encoder'}"
        raise PromptmillError(f"task {task.name}: tune.loss", what, f"It has {', '.join(fitting)}.")
    if idle := next((name for name in _IDLE[backbone.causal] if getattr(spec, name) != type(spec).model_fields[name].default), None):
        what = f"is for {'an encoder' if backbone.causal else 'a causal model'}, and {backbone.identity.name} is none"
        raise PromptmillError(f"task {task.name}: tune.{idle}", what, "Leave it out.")
    if spec.loss == "vocabulary":
        if several := next((label for label in labels if len(descriptions(task, label)) > 1), None):
            what = f"vocabulary learns to say one text for a label, but {several} has several"
            raise PromptmillError(f"task {task.name}: tune.loss", what, "Take label_set, or give each label one description.")
        words = [ids for own in label_ids(task, encoding, backbone, labels) for ids in own]
        return VocabularyWords(backbone, words, spec.label_score == "mean", spec.label_smoothing)
    if spec.contrastive:
        label_ids(task, encoding, backbone, labels)  # the labels' names are examples of them
        compare = pairs_loss if spec.loss == "pairs" else partial(supervised_contrastive_loss, scale=spec.anchor_scale)
        head, tokens = spec.head or "means", spec.batch_tokens
        return Contrastive(backbone, len(labels), compare, head=head, scale=spec.anchor_scale, c=spec.head_c, batch_tokens=tokens)
    classifier = build_classifier(task, encoding, backbone, labels)
    if not isinstance(classifier, LabelAnchors):
        if spec.head:
            what = f"{spec.head} is fitted on an encoder's embeddings, and {backbone.identity.name} is a causal model"
            raise PromptmillError(f"task {task.name}: tune.head", what, "Leave it out.")
        return classifier
    if spec.head and len(labels) < 2:
        what = f"all training examples are {labels[0]}, which leaves {spec.head} nothing to tell apart"
        raise PromptmillError(f"task {task.name}: tune.head", what, "Add examples of another label.")
    anchored = backbone, classifier.anchors, spec.anchor_scale, spec.weight_of_pairs, smoothing
    if spec.head:
        return RefittedAnchors(*anchored, c=spec.head_c, batch_tokens=spec.batch_tokens)
    return ContrastedAnchors(*anchored) if spec.weight_of_pairs else classifier


@torch.no_grad()
def build_classifier(task: TaskSpec, encoding: TaskEncoding, backbone: Backbone, labels: Sequence[str]) -> Classification:
    """Label words for a causal model; for an encoder label anchors that start at the descriptions' embeddings.

    Of a label with several descriptions the likelihoods, or the embeddings, are averaged.

    Raises:
        PromptmillError: as `label_ids`.
    """
    spec, said = task.tune, label_ids(task, encoding, backbone, labels)
    every, ways = [ids for own in said for ids in own], [len(own) for own in said]
    if backbone.causal:
        return LabelWords(backbone, every, spec.label_score == "mean", spec.label_smoothing, ways)
    embedded = embed_texts(backbone, PromptState.of(backbone), every)
    anchors = torch.stack([own.mean(0) for own in torch.split(embedded, ways)])
    return LabelAnchors(backbone, anchors, spec.anchor_scale, spec.label_smoothing)


@torch.no_grad()
def continue_from(objective: Objective, source: TunedPrompt) -> None:
    """Start what an objective trains beside the prompt, such as label anchors, where those of a prompt with the same labels ended."""
    for name, parameter in objective.named_parameters():
        if name in source.tensors and source.tensors[name].shape == parameter.shape:
            parameter.copy_(source.tensors[name])


def label_ids(task: TaskSpec, encoding: TaskEncoding, backbone: Backbone, labels: Sequence[str]) -> list[list[list[int]]]:
    """Token ids of each label's descriptions: as a causal model says them, with their end; as an encoder reads them.

    Raises:
        PromptmillError: a description that is no token, or two labels with the same ones.
    """
    where, found = f"task {task.name}: labels", []
    owners: dict[frozenset[tuple[int, ...]], str] = {}
    for label in labels:
        texts = descriptions(task, label)
        if empty := [text for text in texts if not text.strip() or not encoding.encode_answer(text)]:
            what = f'"{label}" is said as "{empty[0]}", which is no token of {task.backbone.name}'
            raise PromptmillError(where, what, "Name other words for it.")
        own = [encoding.encode_target(text) if backbone.causal else encoding.encode_text(text) for text in texts]
        if (other := owners.setdefault(frozenset(map(tuple, own)), label)) != label:
            what = f'"{other}" and "{label}" are both said as "{texts[0]}", the same tokens of {task.backbone.name}'
            raise PromptmillError(where, what, "Give each a description of its own in labels.")
        found.append(own)
    return found


def label_examples(task: TaskSpec, encoding: TaskEncoding, backbone: Backbone, labels: Sequence[str]) -> list[Encoded]:
    """The labels' descriptions as examples of themselves, for an encoder: with few examples per label one more that costs nothing."""
    if backbone.causal or task.tags:
        return []
    texts = [(number, encoding.encode_text(text)) for number, label in enumerate(labels) for text in descriptions(task, label)]
    return [Encoded(tuple(ids), (number,), truncated=False) for number, ids in texts]


def describe(task: TaskSpec, label: str) -> str:
    """A label as text: the task's (first) description of it, else its name in words (`Refund_not_showing_up`: `Refund not showing up`)."""
    return descriptions(task, label)[0]


def descriptions(task: TaskSpec, label: str) -> tuple[str, ...]:
    """All texts that stand for a label."""
    described = task.labels.get(label) or " ".join(_BETWEEN_WORDS.sub(" ", label).split())
    return all_texts(described)


def answer(task: TaskSpec, target: str) -> str:
    """A row's target as the model is to say it: a label's description, or the text itself."""
    return describe(task, target) if task.objective == "classify" else target
