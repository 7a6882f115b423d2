"""Scores of many text prompts on many examples in one packed pass: each prompt's own tokens are computed once per pass.

Candidates are the roots of the forest, with their demonstrations; examples stand below, label words are the leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.data.packing import pack
from prompt_core.encoded import Encoded
from prompt_core.encoding import TaskEncoding
from prompt_core.prompts import PromptState, Tree, hidden_states
from prompt_core.task import TaskSpec
from prompt_core.text.index import unit_vectors
from prompt_core.text.prompt import Demonstration, TextPrompt
from prompt_core.tuning.build import answer, build_classifier, descriptions
from prompt_core.tuning.likelihood import next_token_losses
from prompt_core.tuning.objective import Classification, LabelAnchors, Segments


@dataclass(frozen=True, eq=False)
class Question:
    """A text prompt made ready for one backbone.

    Attributes:
        encoding: tokens of its inputs.
        root: what stands in front of them, demonstrations included that all of them share.
        classifier: how what stands for its labels is scored; None where it writes texts.
    """

    encoding: TaskEncoding
    root: PromptState
    classifier: Classification | None

    @classmethod
    def of(cls, task: TaskSpec, prompt: TextPrompt, backbone: Backbone, labels: Sequence[str]) -> Question:
        """Raises PromptmillError: the prompt does not fit the backbone's context, or names a field that is not there."""
        encoding = TaskEncoding(prompt.applied_to(task), backbone, soft=False, inside=True, parted=prompt.parted)
        classifier = classifier_of(task, prompt, encoding, backbone, labels) if labels else None
        return cls(encoding, root_of(prompt, encoding, backbone), classifier)

    def encode(self, task: TaskSpec, row: Mapping[str, Any], shown: Sequence[Demonstration] = ()) -> Encoded:
        """A row with its answer as the target of a text; of a classifier the input alone. `shown` are demonstrations of its own."""
        return self.read(row, None if self.classifier else answer(task, row[task.data.target]), shown)

    def read(self, row: Mapping[str, Any], target: str | None = None, shown: Sequence[Demonstration] = ()) -> Encoded:
        """Token ids of one input, with demonstrations of its own in front of it, behind the root."""
        encoded = self.encoding.encode(row, target)
        return replace(encoded, input=behind(len(self.root.root), self.encoding, shown) + encoded.input) if shown else encoded

    @property
    def front(self) -> tuple[int, ...]:
        """The tokens that the model reads before every input's own: the root, or what an encoder's inputs begin with."""
        return self.root.root + self.encoding.before

    def tokens(self, example: Encoded) -> int:
        """Of an example in a pass."""
        return self.classifier.tokens(example) if self.classifier else len(example.input) + len(example.target)

    def segments(self, examples: Sequence[Encoded]) -> Segments:
        """A `Tree` behind the root."""
        if self.classifier:
            return self.classifier.segments(examples)
        inputs: list[Sequence[int]] = [e.input + e.target[:-1] for e in examples]
        return inputs, None

    def scores(self, backbone: Backbone, states: Tensor, examples: Sequence[Encoded]) -> Tensor:
        """Label scores [n, labels], or the mean log-likelihood of the target's tokens [n, 1]."""
        return self.classifier.scores(states, examples) if self.classifier else _likelihoods(backbone, states, examples)


def root_of(prompt: TextPrompt, encoding: TaskEncoding, backbone: Backbone) -> PromptState:
    """What stands in front of every input of a text prompt: its words before the first field, and its demonstrations.

    Where these are retrieved, what all inputs share ends before them.

    Raises:
        PromptmillError: they do not fit the backbone's context; those retrieved: the longest that may come together.
    """
    shown = [(demonstration.fields, demonstration.answer) for demonstration in prompt.demonstrations]
    if not shown:
        return PromptState.of(backbone, root=encoding.root)
    if prompt.retrieval is None:
        return PromptState.of(backbone, root=encoding.root_with_demonstrations(shown))
    alone = [encoding.root_with_demonstrations([each]) for each in shown]
    longest = sorted(range(len(shown)), key=lambda number: len(alone[number]))[-prompt.retrieval.count :]
    encoding.root_with_demonstrations([shown[number] for number in longest])
    return PromptState.of(backbone, root=open_root(encoding.root, alone))


def open_root(root: tuple[int, ...], alone: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """What all roots have in front, whichever demonstrations stand behind; see `behind`.

    Args:
        root: the one without demonstrations.
        alone: the roots with each of them alone.
    """
    common = len(root)
    while any(ids[:common] != root[:common] for ids in alone):  # what follows may melt with its end, in some vocabularies
        common -= 1
    return root[:common]


def behind(root_tokens: int, encoding: TaskEncoding, shown: Sequence[Demonstration]) -> tuple[int, ...]:
    """What stands between a shared root and an input that has demonstrations of its own: with it, a child of that root."""
    return encoding.root_with_demonstrations([(each.fields, each.answer) for each in shown])[root_tokens:]


def classifier_of(task: TaskSpec, prompt: TextPrompt, encoding: TaskEncoding, backbone: Backbone, labels: Sequence[str]) -> Classification:
    """Label words; for an encoder anchors, each the mean embedding of what stands for its label: descriptions and exemplars."""
    worded = prompt.applied_to(task)
    if backbone.causal:
        return build_classifier(worded, encoding, backbone, labels)
    texts: list[tuple[int, Sequence[int]]] = []
    for number, label in enumerate(labels):
        texts += [(number, encoding.encode_text(text)) for text in descriptions(worded, label)]
        texts += [(number, encoding.encode(fields).input) for fields in (prompt.exemplars or {}).get(label, ())]
    vectors = unit_vectors(backbone, [ids for _, ids in texts], task.tune.batch_tokens)
    owner = torch.tensor([number for number, _ in texts])
    sums = torch.zeros(len(labels), vectors.shape[1]).index_add(0, owner, vectors)
    return LabelAnchors(backbone, sums.to(backbone.device), task.tune.anchor_scale)


@torch.inference_mode()
def score_prompts(
    backbone: Backbone, questions: Sequence[Question], examples: Sequence[Sequence[Encoded]], batch_tokens: int
) -> list[Tensor]:
    """Score every question on its examples.

    Args:
        examples: per question, its inputs as `Question.encode` gives them.
        batch_tokens: of a pass, its roots aside.

    Returns:
        Per question, float32 on the CPU: label scores [n, labels] (of a classifier) or the mean log-likelihood per target
        token [n, 1], as if each (prompt, example, label) had run by itself.
    """
    found: list[list[Tensor]] = [[] for _ in questions]
    items = [(number, example) for number, own in enumerate(examples) for example in own]
    for packed in pack(items, lambda item: questions[item[0]].tokens(item[1]), batch_tokens):
        groups = [(number, [example for _, example in group]) for number, group in groupby(packed, key=lambda item: item[0])]
        trees = [Tree(questions[number].root, *questions[number].segments(batch)) for number, batch in groups]
        for (number, batch), states in zip(groups, hidden_states(backbone, trees), strict=True):
            found[number].append(questions[number].scores(backbone, states, batch).float().cpu())
    return [torch.cat(parts) if parts else torch.empty(0, 1) for parts in found]


def _likelihoods(backbone: Backbone, states: Tensor, examples: Sequence[Encoded]) -> Tensor:
    ends = torch.tensor([len(e.input) + len(e.target) - 1 for e in examples]).cumsum(0).tolist()
    rows = [row for end, e in zip(ends, examples, strict=True) for row in range(end - len(e.target), end)]
    sizes = [len(e.target) for e in examples]
    targets = torch.tensor([token for e in examples for token in e.target], device=states.device)
    chosen = states[torch.tensor(rows, device=states.device)]
    losses = next_token_losses(backbone, chosen, torch.arange(len(rows), device=states.device), targets)
    return -torch.stack([part.mean() for part in torch.split(losses, sizes)])[:, None]
