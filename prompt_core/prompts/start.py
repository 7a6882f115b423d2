"""Where tuning starts. It is worth 20 points of accuracy in PEFT's own comparison: real text beats random numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError
from prompt_core.methods import Start
from prompt_core.prompts.compaction import Compactions
from prompt_core.prompts.deep import DeepPrefix
from prompt_core.prompts.packed import lower
from prompt_core.prompts.prompt import Prompt, PromptState
from prompt_core.prompts.reparameterised import Reparameterised
from prompt_core.prompts.soft import SoftPrompt
from prompt_core.task import TaskSpec

_DEFAULT_TOKENS = 16
_CONTEXT_TOKENS = 128  # of what is distilled
_ENCODER_DEVIATION = 0.5
_SAMPLE = 512  # vocabulary tokens that the scale of a random deep prefix is measured on


@dataclass(frozen=True, eq=False)
class Context:
    """What a distilled prompt is to stand for.

    Attributes:
        ids: token ids that a teacher reads in front of every input.
        read: gives them lowered, as keys and values.
        texts: token ids of what stands behind, inputs with the teacher's answers.
        compactions: those that were made before.
    """

    ids: Sequence[int]
    read: Callable[[], PromptState]
    texts: Sequence[Sequence[int]]
    compactions: Compactions


def starting_prompt(
    task: TaskSpec,
    encoding: TaskEncoding,
    backbone: Backbone,
    generator: torch.Generator,
    labels: Sequence[str] = (),
    demonstrations: Sequence[tuple[Mapping[str, Any], str]] = (),
    source: TunedPrompt | None = None,
    context: Context | None = None,
) -> Prompt:
    """The untuned prompt of a task.

    A start is a text (the root, a given one, the labels' words, solved examples, words drawn from the vocabulary, the
    first tokens of a context), whose embeddings a soft prompt takes and whose keys and values a deep one; or a whole
    context's keys and values made few (`compact`); or numbers at the model's own scale; or another tuned prompt. Where
    another length is asked for, a text is repeated to that and its last tokens stay: they lead over to the example. A
    random start for an encoder is small keys and values, which leave its embeddings as good as they are: those of 16
    vocabulary tokens cost 9 points of nearest-class-mean accuracy before the first step (Banking77, all-MiniLM-L6-v2).

    Args:
        task: `prompt` says kind, length, start and network.
        encoding: whose root the prompt replaces, unless the template says with soft(n) what is tuned.
        backbone: the frozen model.
        generator: the task's random stream, on the CPU.
        labels: their descriptions, for `labels`.
        demonstrations: fields and answer of training examples, for `demonstrations`.
        source: the tuned prompt, for `prompt`; of the same backbone. Where it is words, the task has its template.
        context: what is distilled, for `context` and `compaction`.

    Raises:
        PromptmillError: the start, the kind, the template and the backbone do not fit each other.
    """
    start = _Start(task, encoding, backbone, generator, labels, demonstrations, source, context)
    prompt = start.soft() if task.prompt.kind == "soft" else start.deep()
    network = task.prompt.network
    return prompt if network == "none" else Reparameterised(prompt, network, task.prompt.hidden, generator)


class _Start:
    def __init__(
        self,
        task: TaskSpec,
        encoding: TaskEncoding,
        backbone: Backbone,
        generator: torch.Generator,
        labels: Sequence[str],
        demonstrations: Sequence[tuple[Mapping[str, Any], str]],
        source: TunedPrompt | None,
        context: Context | None,
    ) -> None:
        self.task, self.encoding, self.backbone, self.generator = task, encoding, backbone, generator
        self.labels, self.demonstrations, self.source = labels, demonstrations, source
        self.context = context
        # In a template with soft(n) the text before the first field stays text; it starts nothing.
        root = encoding.root and not encoding.soft_tokens
        self.kind = task.prompt.start or self._default(bool(root))
        if task.prompt.tokens and encoding.soft_tokens:
            raise self._refused("tokens", f"{task.prompt.tokens}, but the template says soft(n)", "Remove one of the two.")
        if self.kind == "root" and not root:
            what = "root, but the template " + ("says soft(n)" if encoding.soft_tokens else "starts with a field")
            raise self._refused("start", what, "Use text, vocabulary or random, or add an instruction.")

    def _default(self, root: bool) -> Start:
        if self.context:
            return "context" if self.task.prompt.kind == "soft" else "compaction"
        return "root" if root else "vocabulary" if self.backbone.generates else "random"

    def soft(self) -> SoftPrompt:
        if not self.backbone.generates:
            what = f"soft, but {self.backbone.identity.name} is an encoder, whose soft prompt would be computed anew for every example"
            raise self._refused("kind", what, "Use deep.")
        rows = self._rows(self.encoding.soft_tokens or self.task.prompt.tokens)
        return SoftPrompt(self.backbone, rows, self.encoding.root if self.encoding.soft_tokens else None)

    def deep(self) -> DeepPrefix:
        backbone, spec, soft = self.backbone, self.task.prompt, self.encoding.soft_tokens
        if any(token < 0 for token in self.encoding.root):
            what = "deep, but the template has soft(n) before the first field, where a deep prompt tunes everything"
            raise self._refused("kind", what, "Use soft, or remove soft(n).")
        if soft and not self.encoding.root:
            what = "deep, but the template starts with a field, and what a deep prompt tunes beside soft(n) is the text before that"
            raise self._refused("kind", what, "Use soft, or add an instruction.")
        embeddings = self._rows(soft) if soft else None
        tokens = spec.tokens or None
        from_prompt = self.kind == "prompt" and not self._from_words
        if from_prompt and (not soft or self._source_is_deep):
            keys, values = self._of_source(tokens)
        elif soft:  # the text before the first field becomes the prefix, the soft tokens behind it have rows of their own
            keys, values = self._read(self.encoding.root)
        elif self.kind == "compaction":
            context, tokens = self._context(tokens)
            made = context.compactions
            keys, values = made.compact(backbone, context.ids, context.read, context.texts, tokens, self.generator)
        elif self.kind == "zero":
            keys, values = torch.zeros(2, *self._shape(tokens or _DEFAULT_TOKENS), device=backbone.device)
        elif self.kind == "random":
            deviation = torch.full((2, backbone.num_layers), _ENCODER_DEVIATION)
            if backbone.generates:  # real keys and values differ in size from layer to layer
                sample = self._read(self._vocabulary(min(_SAMPLE, backbone.max_positions)))
                deviation = torch.stack([states.flatten(1).std(1).cpu() for states in sample])
            numbers = torch.randn((2, *self._shape(tokens or _DEFAULT_TOKENS)), generator=self.generator)
            keys, values = (numbers * deviation[:, :, None, None, None]).to(backbone.device)
        else:
            keys, values = self._read(_to_length(self._ids(tokens), tokens))
        return DeepPrefix(backbone, keys, values, embeddings, spec.sink)

    def _rows(self, tokens: int | None) -> Tensor:
        vocabulary = self.backbone.vocabulary
        if self.kind == "random":
            count = tokens or _DEFAULT_TOKENS
            rows = torch.randn(count, vocabulary.shape[1], generator=self.generator).to(vocabulary.device)
            return rows * vocabulary.float().std(0) + vocabulary.float().mean(0)
        if self.kind == "prompt" and not self._from_words:
            assert self.source is not None  # `tune` opens it
            if "embeddings" not in self.source.tensors or (self.task.prompt.kind == "soft" and self._source_is_deep):
                raise self._refused("start_from", f"{self.source.name} is a deep prompt", "A soft prompt can start from a soft one.")
            rows = self.source.tensors["embeddings"].to(vocabulary.device)
            count = tokens or len(rows)
            return rows.repeat(-(-count // len(rows)), 1)[-count:]
        ids = _to_length(self._ids(tokens), tokens)
        return self.backbone.embed(torch.tensor(ids, device=vocabulary.device))

    @property
    def _source_is_deep(self) -> bool:
        return self.source is not None and self.source.manifest.kind == "deep"

    @property
    def _from_words(self) -> bool:
        return self.source is not None and self.source.manifest.text is not None

    def _of_source(self, tokens: int | None) -> tuple[Tensor, Tensor]:
        assert self.source is not None  # `tune` opens it
        parts = {name: tensor.to(self.backbone.device) for name, tensor in self.source.tensors.items()}
        if "keys" not in parts:
            rows = parts["embeddings"]
            root = TaskEncoding(self.source.task, self.backbone).root
            state = SoftPrompt(self.backbone, rows, root if any(token < 0 for token in root) else None).state()
            lowered = lower(self.backbone, state)
            parts |= {"keys": lowered.keys, "values": lowered.values}
        found = parts["keys"].shape[1]
        if tokens and tokens != found:
            raise self._refused("tokens", f"{tokens}, but {self.source.name} has {found}", "Leave tokens out.")
        return parts["keys"], parts["values"]

    def _ids(self, tokens: int | None) -> Sequence[int]:
        if self.kind == "root":
            return self.encoding.root
        if self.kind == "prompt":
            return self._words_of_source()
        if self.kind == "context":
            context, tokens = self._context(tokens)
            return self.encoding.cut_root(context.ids, tokens)
        if self.kind == "vocabulary":
            return self._vocabulary(tokens or _DEFAULT_TOKENS)
        if self.kind == "demonstrations":
            if not self.demonstrations:
                raise self._refused("start", "demonstrations, but there is no training example", "Add examples.")
            return self.encoding.root_with_demonstrations(self.demonstrations)
        if self.kind == "labels" and not self.labels:
            raise self._refused("start", f"labels, but the objective is {self.task.objective}", "Use text or vocabulary.")
        text = self.task.prompt.text if self.kind == "text" else "\n".join(self.labels)
        ids = self.encoding.encode_bare(text or "")
        if not ids:
            raise self._refused(self.kind, "has no tokens", "Give it words.")
        return ids

    def _context(self, tokens: int | None) -> tuple[Context, int]:
        """What is distilled, and into how many tokens."""
        assert self.context is not None  # a task that starts so distils
        tokens, found = tokens or _CONTEXT_TOKENS, len(self.context.ids)
        if tokens > found:
            raise self._refused("tokens", f"{tokens}, but what is distilled has {found}", "Lower prompt.tokens.")
        return self.context, tokens

    def _words_of_source(self) -> Sequence[int]:
        """What a text prompt says before an input, its demonstrations included."""
        assert self.source is not None and self.source.manifest.text is not None  # else its tensors are taken
        if self.source.manifest.text.retrieval:
            what = f"{self.source.name} shows each input demonstrations of its own"
            raise self._refused("start_from", what, "Start from a text prompt whose demonstrations are fixed.")
        shown = [(demonstration.fields, demonstration.answer) for demonstration in self.source.manifest.text.demonstrations]
        ids = self.encoding.root_with_demonstrations(shown) if shown else self.encoding.root
        if not ids:
            raise self._refused("start_from", f"{self.source.name} says nothing before its first field", "Start from another one.")
        return ids

    def _vocabulary(self, count: int) -> list[int]:
        drawn: list[int] = torch.randint(len(self.backbone.vocabulary), (count,), generator=self.generator).tolist()
        return drawn

    def _read(self, ids: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Keys and values of a text, each [L, P, Hkv, D]."""
        state = lower(self.backbone, PromptState.of(self.backbone, root=ids))
        return state.keys, state.values

    def _shape(self, tokens: int) -> tuple[int, ...]:
        return self.backbone.num_layers, tokens, self.backbone.num_kv_heads, self.backbone.head_dim

    def _refused(self, field: str, what: str, fix: str) -> PromptmillError:
        return PromptmillError(f"task {self.task.name}: prompt.{field}", what, fix)


def _to_length(ids: Sequence[int], tokens: int | None) -> list[int]:
    tokens = tokens or len(ids)
    return (list(ids) * -(-tokens // len(ids)))[-tokens:]
