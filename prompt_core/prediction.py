"""Prediction: inputs to labels or generated texts, the same way for a tuned prompt and for every untuned contender."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone, load_backbone
from prompt_core.data.packing import pack
from prompt_core.encoding import Encoded, TaskEncoding, soft_ids
from prompt_core.errors import PromptmillError
from prompt_core.generation import generate
from prompt_core.prompts import PromptState, lower
from prompt_core.tuning.build import build_classifier
from prompt_core.tuning.objective import Classification, LabelAnchors

OnProgress = Callable[[int, int], None]


def predict(
    prompt: TunedPrompt, inputs: Sequence[str | Mapping[str, Any]], backbone: Backbone | None = None, on_progress: OnProgress | None = None
) -> list[str]:
    """Labels or generated texts of a tuned prompt, see `TunedPrompt.predict`."""
    backbone = backbone or backbone_of(prompt)
    prompt.check_base(backbone.identity)
    encoding = TaskEncoding(prompt.task, backbone)
    encoded = [_encoded(encoding, fields, number) for number, fields in enumerate(as_fields(inputs, encoding.fields), 1)]
    tuned = restore(prompt, encoding, backbone)
    if prompt.task.writes:
        assert prompt.manifest.max_new_tokens is not None  # the tuning of a generation task records it
        return generate_texts(backbone, encoding, tuned, encoded, prompt.manifest.max_new_tokens, on_progress)
    classifier = restore_classifier(prompt, encoding, backbone)
    return classify(backbone, classifier, tuned, encoded, prompt.manifest.labels, prompt.task.tune.batch_tokens, on_progress)


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


@torch.inference_mode()
def classify(
    backbone: Backbone,
    classifier: Classification,
    prompt: PromptState,
    inputs: Sequence[Encoded],
    labels: Sequence[str],
    batch_tokens: int,
    on_progress: OnProgress | None = None,
) -> list[str]:
    """The label with the highest score for each input; the prompt's root is read once."""
    found: list[str] = []
    prompt = lower(backbone, prompt)
    for batch in pack(inputs, classifier.tokens, batch_tokens):
        best: Tensor = classifier.scores_behind(prompt, batch).argmax(-1)
        found += [labels[i] for i in best.tolist()]
        if on_progress:
            on_progress(len(found), len(inputs))
    return found


def restore(prompt: TunedPrompt, encoding: TaskEncoding, backbone: Backbone) -> PromptState:
    """The artifact's prompt on the backbone's device, as its template places it."""
    tensors = {name: tensor.to(backbone.device) for name, tensor in prompt.tensors.items()}
    rows = tensors.get("embeddings")
    if prompt.manifest.kind == "deep":
        return PromptState.of(backbone, rows=rows, keys=tensors["keys"], values=tensors["values"])
    root = encoding.root if encoding.soft_tokens else soft_ids(prompt.manifest.tokens)
    return PromptState.of(backbone, rows=rows, root=root)


def restore_classifier(prompt: TunedPrompt, encoding: TaskEncoding, backbone: Backbone) -> Classification:
    """The artifact's classifier: its tuned anchors, or the label words that the task names."""
    if "anchors" in prompt.tensors:
        return LabelAnchors(backbone, prompt.tensors["anchors"].to(backbone.device), prompt.task.tune.anchor_scale)
    return build_classifier(prompt.task, encoding, backbone, prompt.manifest.labels)


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


def _encoded(encoding: TaskEncoding, fields: Mapping[str, Any], number: int) -> Encoded:
    try:
        return encoding.encode(fields)
    except PromptmillError as error:
        raise PromptmillError(f"input {number}: {error.where}", error.what, error.fix) from None


def backbone_of(prompt: TunedPrompt) -> Backbone:
    """The frozen model that a prompt was tuned on, loaded once per process."""
    spec = prompt.task.backbone
    found = {"name": prompt.origin or spec.name, "dtype": prompt.manifest.backbone.dtype}
    return load_backbone(spec.model_copy(update=found))
