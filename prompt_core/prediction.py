"""Prediction: inputs to labels, generated texts or entities, the same way for a tuned prompt and for every untuned contender."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone, load_backbone
from prompt_core.data.packing import pack
from prompt_core.encoding import Encoded, Located, TaskEncoding, soft_ids
from prompt_core.errors import PromptmillError
from prompt_core.generation import generate
from prompt_core.prompts import PromptState, lower
from prompt_core.text.index import retrieve
from prompt_core.text.prompt import Demonstration
from prompt_core.text.score import behind, classifier_of, root_of
from prompt_core.tuning.build import build_classifier
from prompt_core.tuning.heads import LinearHead
from prompt_core.tuning.objective import Classification, LabelAnchors
from prompt_core.tuning.tags import TokenTags, answer_of

OnProgress = Callable[[int, int], None]
Read = TypeVar("Read", bound=Encoded)


def predict(
    prompt: TunedPrompt, inputs: Sequence[str | Mapping[str, Any]], backbone: Backbone | None = None, on_progress: OnProgress | None = None
) -> list[str]:
    """Labels, generated texts or entities of a tuned prompt, see `TunedPrompt.predict`."""
    backbone = backbone or backbone_of(prompt)
    prompt.check_base(backbone.identity)
    encoding = encoding_of(prompt, backbone)
    rows = as_fields(inputs, encoding.fields)
    tuned = restore(prompt, encoding, backbone)
    if prompt.task.tags:
        located = [_numbered(encoding.locate, fields, number) for number, fields in enumerate(rows, 1)]
        return find_entities(restore_tagger(prompt, backbone), tuned, located, prompt.task.tune.batch_tokens, on_progress)
    encoded = [_numbered(encoding.encode, fields, number) for number, fields in enumerate(rows, 1)]
    if prompt.manifest.text and prompt.manifest.text.retrieval:
        own = [behind(tuned, encoding, shown) for shown in retrieve(prompt, rows, backbone)]
        encoded = [replace(example, input=shown + example.input) for example, shown in zip(encoded, own, strict=True)]
    if prompt.task.writes:
        assert prompt.manifest.max_new_tokens is not None  # the tuning of a generation task records it
        return generate_texts(backbone, encoding, tuned, encoded, prompt.manifest.max_new_tokens, on_progress)
    classifier = restore_classifier(prompt, encoding, backbone)
    return classify(backbone, classifier, tuned, encoded, prompt.manifest.labels, prompt.task.tune.batch_tokens, on_progress)


def demonstrations_for(
    prompt: TunedPrompt, inputs: Sequence[str | Mapping[str, Any]], backbone: Backbone | None = None
) -> list[list[Demonstration]]:
    """The demonstrations that each input gets of its own, see `TunedPrompt.retrieve`."""
    backbone = backbone or backbone_of(prompt)
    prompt.check_base(backbone.identity)
    return retrieve(prompt, as_fields(inputs, encoding_of(prompt, backbone).fields), backbone)


def encoding_of(prompt: TunedPrompt, backbone: Backbone) -> TaskEncoding:
    """How a prompt's inputs are read: an encoder reads the words of a text prompt inside of each."""
    return TaskEncoding(prompt.worded, backbone, inside=prompt.manifest.kind == "text")


def generate_texts(
    backbone: Backbone,
    encoding: TaskEncoding,
    prompt: PromptState,
    inputs: Sequence[Encoded],
    max_new_tokens: int,
    on_progress: OnProgress | None = None,
) -> list[str]:
    """Greedy texts behind a prompt."""
    ids = generate(backbone, prompt, [e.input for e in inputs], max_new_tokens, encoding.end_of_turn, on_progress)
    return [encoding.decode(row) for row in ids]


def classify(
    backbone: Backbone,
    classifier: Classification,
    prompt: PromptState,
    inputs: Sequence[Encoded],
    labels: Sequence[str],
    batch_tokens: int,
    on_progress: OnProgress | None = None,
) -> list[str]:
    """The label with the highest score for each input."""
    return best_labels(label_scores(backbone, classifier, prompt, inputs, len(labels), batch_tokens, on_progress), labels)


@torch.inference_mode()
def label_scores(
    backbone: Backbone,
    classifier: Classification,
    prompt: PromptState,
    inputs: Sequence[Encoded],
    labels: int,
    batch_tokens: int,
    on_progress: OnProgress | None = None,
) -> Tensor:
    """The scores of each input, float32 [inputs, labels] on the CPU; the prompt's root is read once."""
    scores = torch.empty(len(inputs), labels)
    prompt, done = lower(backbone, prompt), 0
    for batch in pack(inputs, classifier.scoring_tokens, batch_tokens):
        scores[done : done + len(batch)] = classifier.scores_behind(prompt, batch)
        done += len(batch)
        if on_progress:
            on_progress(done, len(inputs))
    return scores


def best_labels(scores: Tensor, labels: Sequence[str]) -> list[str]:
    """The label with the highest of the scores [inputs, labels] for each input."""
    return [labels[i] for i in scores.argmax(-1).tolist()]


@torch.inference_mode()
def find_entities(
    tagger: TokenTags,
    prompt: PromptState,
    inputs: Sequence[Located],
    batch_tokens: int,
    on_progress: OnProgress | None = None,
) -> list[str]:
    """The entities of each input as a JSON list, see `answer_of`."""
    found: list[str] = []
    for batch in pack(inputs, tagger.tokens, batch_tokens):
        scores = tagger.scores_behind(prompt, batch)
        found += [answer_of(own, example, tagger.labels) for own, example in zip(scores, batch, strict=True)]
        if on_progress:
            on_progress(len(found), len(inputs))
    return found


def restore(prompt: TunedPrompt, encoding: TaskEncoding, backbone: Backbone) -> PromptState:
    """The artifact's prompt on the backbone's device, as its template places it."""
    if prompt.manifest.text:
        return root_of(prompt.manifest.text, encoding, backbone)
    tensors = {name: tensor.to(backbone.device) for name, tensor in prompt.tensors.items()}
    rows = tensors.get("embeddings")
    if prompt.manifest.kind == "deep":
        return PromptState.of(backbone, rows=rows, keys=tensors["keys"], values=tensors["values"])
    root = encoding.root if encoding.soft_tokens else soft_ids(prompt.manifest.tokens)
    return PromptState.of(backbone, rows=rows, root=root)


def restore_classifier(prompt: TunedPrompt, encoding: TaskEncoding, backbone: Backbone) -> Classification:
    """The artifact's classifier: its head or tuned anchors, or what a text prompt or the task says for the labels; calibrated as it was."""
    tensors = {name: tensor.to(backbone.device) for name, tensor in prompt.tensors.items()}
    classifier: Classification
    if "head_weights" in tensors:
        classifier = LinearHead(backbone, tensors["head_weights"], tensors["head_bias"])
    elif "anchors" in tensors:
        classifier = LabelAnchors(backbone, tensors["anchors"], prompt.task.tune.anchor_scale)
    elif prompt.manifest.text:
        classifier = classifier_of(prompt.task, prompt.manifest.text, encoding, backbone, prompt.manifest.labels)
    else:
        classifier = build_classifier(prompt.task, encoding, backbone, prompt.manifest.labels)
    classifier.label_bias = tensors.get("label_bias")
    return classifier


def restore_tagger(prompt: TunedPrompt, backbone: Backbone) -> TokenTags:
    """The artifact's tagger."""
    tagger = TokenTags(backbone, prompt.manifest.labels)
    tagger.load_state_dict({name: prompt.tensors[name] for name in tagger.state_dict()})
    return tagger


def as_fields(inputs: Sequence[str | Mapping[str, Any]], fields: Sequence[str]) -> list[Mapping[str, Any]]:
    """Inputs as mappings; a text stands for the one field of the template.

    Raises:
        PromptmillError: a text where the template has several fields.
    """
    rows: list[Mapping[str, Any]] = []
    for number, given in enumerate(inputs, 1):
        if isinstance(given, str) and len(fields) != 1:
            raise PromptmillError(
                f"input {number}", f"is a text, but the template has the fields {', '.join(fields)}", "Give a mapping of field to text."
            )
        rows.append({fields[0]: given} if isinstance(given, str) else given)
    return rows


def _numbered(read: Callable[[Mapping[str, Any]], Read], fields: Mapping[str, Any], number: int) -> Read:
    try:
        return read(fields)
    except PromptmillError as error:
        raise PromptmillError(f"input {number}: {error.where}", error.what, error.fix) from None


def backbone_of(prompt: TunedPrompt) -> Backbone:
    """The frozen model that a prompt was tuned on, loaded once per process."""
    spec = prompt.task.backbone
    found = {"name": prompt.origin or spec.name, "dtype": prompt.manifest.backbone.dtype}
    return load_backbone(spec.model_copy(update=found))
