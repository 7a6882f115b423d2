"""Objectives: what a prompt is tuned for. One class each, and the one place where a new one is added."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prompt_core.backbone import Backbone
from prompt_core.encoding import Encoded
from prompt_core.prompts import Prompt


class Objective(nn.Module, ABC):
    """A loss over examples, with whatever it trains beside the prompt as its parameters."""

    def weight(self, example: Encoded) -> int:
        """How much an example counts in a batch's mean: its terms in the sum that `loss` returns."""
        return 1

    @abstractmethod
    def loss(self, prompt: Prompt, examples: Sequence[Encoded], smoothing: float = 0.0) -> Tensor:
        """Summed loss of the examples behind the prompt, a float32 scalar."""

    def tensors(self) -> dict[str, Tensor]:
        """What the artifact keeps beside the prompt, float32 on the CPU."""
        return {name: parameter.detach().cpu() for name, parameter in self.named_parameters()}


class Generation(Objective):
    """Cross-entropy of the target tokens, each given the prompt, the input and the target before it."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self._backbone = backbone

    def weight(self, example: Encoded) -> int:
        return len(example.target)

    def loss(self, prompt: Prompt, examples: Sequence[Encoded], smoothing: float = 0.0) -> Tensor:
        device = self._backbone.device
        sequences = [torch.tensor(e.input + e.target[:-1], device=device) for e in examples]
        hidden = prompt(self._backbone, sequences)
        # The head is the widest matrix product of a small model: only the rows that predict a target token pass it.
        rows = torch.cat([states[-len(e.target) :] for states, e in zip(hidden, examples, strict=True)])
        targets = torch.tensor([token for e in examples for token in e.target], device=device)
        return F.cross_entropy(self._backbone.logits(rows).float(), targets, reduction="sum", label_smoothing=smoothing)


class Classification(Objective):
    """Base of the classifiers: cross-entropy over the labels' scores. A target is encoded as its label's index."""

    @abstractmethod
    def scores(self, prompt: Prompt, inputs: Sequence[Sequence[int]]) -> Tensor:
        """One score per input and label, float32 [inputs, labels]; the highest is the prediction."""

    def loss(self, prompt: Prompt, examples: Sequence[Encoded], smoothing: float = 0.0) -> Tensor:
        scores = self.scores(prompt, [e.input for e in examples])
        targets = torch.tensor([e.target[0] for e in examples], device=scores.device)
        return F.cross_entropy(scores, targets, reduction="sum", label_smoothing=smoothing)


class LabelAnchors(Classification):
    """Classification with an encoder: cosine of the input's pooled state and one trainable anchor per label.

    Args:
        anchors: where they start, [labels, H]: usually the label descriptions as the frozen encoder sees them.
        scale: factor on the cosine in the softmax.
    """

    def __init__(self, backbone: Backbone, anchors: Tensor, scale: float) -> None:
        super().__init__()
        self._backbone, self._scale = backbone, scale
        self.anchors = nn.Parameter(F.normalize(anchors.detach().float(), dim=-1))

    def scores(self, prompt: Prompt, inputs: Sequence[Sequence[int]]) -> Tensor:
        return self._scale * embed_texts(self._backbone, prompt, inputs) @ F.normalize(self.anchors, dim=-1).T


class LabelWords(Classification):
    """Classification with a causal model: log-likelihood of each label's words and the end of turn after the input.

    The labels branch off each input in the forest, so an input is computed once for all of them.

    Args:
        words: token ids of each label, ending in the end of turn, at least one token each.
    """

    def __init__(self, backbone: Backbone, words: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self._backbone = backbone
        self._words = [torch.tensor(ids, device=backbone.device) for ids in words]

    def scores(self, prompt: Prompt, inputs: Sequence[Sequence[int]]) -> Tensor:
        device, labels = self._backbone.device, len(self._words)
        segments: list[Tensor] = []
        parents: list[int] = []
        for ids in inputs:
            root = len(segments)
            segments += [torch.tensor(ids, device=device), *(words[:-1] for words in self._words)]
            parents += [-1] + [root] * labels
        hidden = prompt(self._backbone, segments, parents)
        # The input's last row predicts every label's first word, a label's own rows predict the words after.
        rows = [
            part
            for start in range(0, len(segments), labels + 1)
            for number in range(labels)
            for part in (hidden[start][-1:], hidden[start + 1 + number])
        ]
        logits = self._backbone.logits(torch.cat(rows)).float()
        targets = torch.cat(self._words * len(inputs))
        likelihoods = -F.cross_entropy(logits, targets, reduction="none")
        per_label = torch.split(likelihoods, [len(words) for words in self._words] * len(inputs))
        return torch.stack([part.sum() for part in per_label]).view(len(inputs), labels)


def embed_texts(backbone: Backbone, prompt: Prompt, inputs: Sequence[Sequence[int]]) -> Tensor:
    """Unit-length pooled states of token sequences behind a prompt, float32 [n, H]."""
    hidden = prompt(backbone, [torch.tensor(ids, device=backbone.device) for ids in inputs])
    return F.normalize(torch.stack([backbone.pool(states) for states in hidden]).float(), dim=-1)
