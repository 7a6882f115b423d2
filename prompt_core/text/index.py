"""Which training examples are near an input: embeddings of the inputs by a frozen model, and demonstrations retrieved with them.

The model is the backbone itself (the mean of its last hidden states), so that a prompt needs no second one; or, with
`text.retriever`, a frozen encoder that was trained for nearness of sentences, which is better at it (Liu et al. 2022,
arXiv:2101.06804).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prompt_core.backbone import Backbone, load_backbone
from prompt_core.backbone.locate import EMBEDDED
from prompt_core.data.packing import pack
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError, nearest
from prompt_core.prompts import PromptState
from prompt_core.task import BackboneSpec, TaskSpec
from prompt_core.template import Template
from prompt_core.text.demonstrations import nearest as nearest_rows
from prompt_core.text.prompt import Demonstration, EmbeddingModel
from prompt_core.tuning.objective import embed_texts

if TYPE_CHECKING:
    from prompt_core.artifact import TunedPrompt


class Embedder:
    """Embeds what an input says: its fields, one a line, without instruction.

    Args:
        task: names the fields, and how long an input may be.
        model: a frozen causal model or encoder.
    """

    def __init__(self, task: TaskSpec, model: Backbone) -> None:
        fields = "\n".join(f"{{{{ {name} }}}}" for name in Template(task).fields)
        plain = task.model_copy(update={"template": fields, "objective": "classify"})
        self.model, self._encoding, self._batch = model, TaskEncoding(plain, model, soft=False), task.tune.batch_tokens

    def inputs(self, rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, ...]]:
        """Token ids of each row."""
        return [(*self._encoding.root, *self._encoding.encode(row).input) for row in rows]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """Unit-length vectors of each row, float32 [n, H] on the CPU."""
        return unit_vectors(self.model, self.inputs(rows), self._batch)


@torch.inference_mode()
def unit_vectors(model: Backbone, inputs: Sequence[Sequence[int]], batch_tokens: int) -> Tensor:
    """Unit-length pooled states of token sequences without a prompt, float32 [n, H] on the CPU."""
    bare = PromptState.of(model)
    found = [embed_texts(model, bare, batch).cpu() for batch in pack(inputs, len, batch_tokens)]
    return torch.cat(found) if found else torch.empty(0, model.hidden_size)


def retriever_of(task: TaskSpec, backbone: Backbone) -> Backbone:
    """The frozen model that says which examples are near.

    Raises:
        PromptmillError: `text.retriever` is no embedded model, or is not installed.
    """
    name = task.text.retriever
    if name is None:
        return backbone
    if name not in EMBEDDED:  # a prompt has to find it again wherever it is used
        raise PromptmillError(f"task {task.name}: text.retriever", f'"{name}" is no embedded model', nearest(name, EMBEDDED))
    return load_backbone(BackboneSpec(name=name))


def embedding_model(model: Backbone) -> EmbeddingModel:
    """A model as a prompt remembers it."""
    return EmbeddingModel(name=model.identity.name, weights=model.identity.weights, tokenizer=model.identity.tokenizer)


class Retriever:
    """The demonstrations of each input of a prompt that retrieves them, as `TextPrompt.render` takes them. The pool is embedded once.

    Args:
        prompt: a text prompt with `retrieval`.
        backbone: its own.

    Raises:
        PromptmillError: the prompt does not retrieve, or the embedding model is not the one that it was made with.
    """

    def __init__(self, prompt: TunedPrompt, backbone: Backbone) -> None:
        text = prompt.manifest.text
        if text is None or text.retrieval is None:
            raise PromptmillError(f"prompt {prompt.name}", "does not retrieve demonstrations", "Use render alone.")
        model, expected = retriever_of(prompt.task, backbone), text.retrieval.model
        if (model.identity.weights, model.identity.tokenizer) != (expected.weights, expected.tokenizer):
            what = f"retrieves by {expected.name} with weights {expected.weights[:12]}, those here are {model.identity.weights[:12]}"
            raise PromptmillError(f"prompt {prompt.name}", what, "Install the version that it was tuned with, or tune it again.")
        self._embed, self._text, self._retrieval = Embedder(prompt.task, model), text, text.retrieval
        self._pool = self._embed([shown.fields for shown in text.demonstrations])
        self._labels = [shown.answer if prompt.manifest.labels else "" for shown in text.demonstrations]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> list[list[Demonstration]]:
        """The demonstrations of inputs, given by their fields."""
        count, balanced, pool = self._retrieval.count, self._retrieval.balanced, self._text.demonstrations
        found = [nearest_rows(self._pool, self._labels, query, count, balanced) for query in self._embed(rows)]
        return [[pool[number] for number in own] for own in found]
