"""What prediction is made of: a prompt restored from its artifact, and inputs to labels, texts or entities behind one prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone, load_backbone
from prompt_core.encoded import Encoded, Located
from prompt_core.encoding import TaskEncoding
from prompt_core.inputs import Inputs, as_fields, as_list
from prompt_core.packed_scores import packed_scores
from prompt_core.prompts import PromptState, lower
from prompt_core.text.index import Retriever
from prompt_core.text.prompt import Demonstration
from prompt_core.text.score import classifier_of, root_of
from prompt_core.tokens import soft_ids
from prompt_core.tuning.build import build_classifier
from prompt_core.tuning.heads import LinearHead
from prompt_core.tuning.objective import Classification, LabelAnchors
from prompt_core.tuning.tags import TokenTags, answer_of

OnProgress = Callable[[int, int], None]


def demonstrations_for(prompt: TunedPrompt, inputs: Inputs, backbone: Backbone | None = None) -> list[list[Demonstration]]:
    """The demonstrations that each input gets of its own, see `TunedPrompt.retrieve`."""
    backbone = backbone or backbone_of(prompt)
    prompt.check_base(backbone.identity)
    return Retriever(prompt, backbone)(as_fields(as_list(inputs), encoding_of(prompt, backbone).fields))


def encoding_of(prompt: TunedPrompt, backbone: Backbone) -> TaskEncoding:
    """How a prompt's inputs are read: an encoder reads the words of a text prompt inside of each."""
    text = prompt.manifest.text
    return TaskEncoding(prompt.worded, backbone, inside=text is not None, parted=text is not None and text.parted)


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
    prompt = lower(backbone, prompt)
    scores = packed_scores(backbone, [(prompt, classifier, example) for example in inputs], batch_tokens, on_progress)
    return torch.stack(scores) if scores else torch.empty(0, labels)


def best_labels(scores: Tensor, labels: Sequence[str]) -> list[str]:
    """The label with the highest of the scores [inputs, labels] for each input."""
    return [labels[i] for i in scores.argmax(-1).tolist()]


def find_entities(
    tagger: TokenTags,
    prompt: PromptState,
    inputs: Sequence[Located],
    batch_tokens: int,
    on_progress: OnProgress | None = None,
) -> list[str]:
    """The entities of each input as a JSON list, see `answer_of`."""
    scores = packed_scores(tagger.backbone, [(prompt, tagger, example) for example in inputs], batch_tokens, on_progress)
    return [answer_of(own, example, tagger.labels) for own, example in zip(scores, inputs, strict=True)]


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


def backbone_of(prompt: TunedPrompt) -> Backbone:
    """The frozen model that a prompt was tuned on, loaded once per process."""
    spec = prompt.task.backbone
    found = {"name": prompt.origin or spec.name, "dtype": prompt.manifest.backbone.dtype}
    return load_backbone(spec.model_copy(update=found))
