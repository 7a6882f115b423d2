"""Which objective a task gets on its backbone, and where that objective's own parameters start."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prompt_core.backbone import Backbone, EncoderDecoder
from prompt_core.encoding import Encoded, TaskEncoding
from prompt_core.prompts import PromptState
from prompt_core.task import TaskSpec
from prompt_core.tuning.distillation import Distillation
from prompt_core.tuning.objective import Classification, Generation, LabelAnchors, LabelWords, Objective, Transduction, embed_texts


def build_objective(task: TaskSpec, encoding: TaskEncoding, backbone: Backbone, labels: Sequence[str]) -> Objective:
    """The objective of a task: generation for `generate`, a teacher's distributions for `distill`, else `build_classifier`."""
    if task.objective == "distill":
        return Distillation(backbone)
    if task.objective == "generate":
        smoothing = task.tune.label_smoothing
        return Transduction(backbone, smoothing) if isinstance(backbone, EncoderDecoder) else Generation(backbone, smoothing)
    return build_classifier(task, encoding, backbone, labels)


@torch.no_grad()
def build_classifier(task: TaskSpec, encoding: TaskEncoding, backbone: Backbone, labels: Sequence[str]) -> Classification:
    """Label words for a causal model; for an encoder label anchors that start at the descriptions' embeddings."""
    descriptions, spec = [describe(task, label) for label in labels], task.tune
    if backbone.causal:
        words = [encoding.encode_target(description) for description in descriptions]
        return LabelWords(backbone, words, spec.label_score == "mean", spec.label_smoothing)
    anchors = embed_texts(backbone, PromptState.of(backbone), [encoding.encode_text(description) for description in descriptions])
    return LabelAnchors(backbone, anchors, spec.anchor_scale, spec.label_smoothing)


def label_examples(task: TaskSpec, encoding: TaskEncoding, backbone: Backbone, labels: Sequence[str]) -> list[Encoded]:
    """The labels' descriptions as examples of themselves, for an encoder: with few examples per label one more that costs nothing."""
    if backbone.causal:
        return []
    texts = [encoding.encode_text(describe(task, label)) for label in labels]
    return [Encoded(tuple(ids), (number,), truncated=False) for number, ids in enumerate(texts)]


def describe(task: TaskSpec, label: str) -> str:
    """A label as text: the task's description of it, else its name in words (`Refund_not_showing_up`: `Refund not showing up`)."""
    return task.labels.get(label) or " ".join(label.replace("_", " ").replace("-", " ").split())


def answer(task: TaskSpec, target: str) -> str:
    """A row's target as the model is to say it: a label's description, or the text itself."""
    return describe(task, target) if task.objective == "classify" else target
