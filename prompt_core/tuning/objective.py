"""Objectives: what a prompt is tuned for. One class each, and the one place where a new one is added."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prompt_core.backbone import Backbone, EncoderDecoder
from prompt_core.encoded import Encoded
from prompt_core.prompts import PromptState, Tree, hidden_states, lower
from prompt_core.tuning.calibration import Calibration, mean_log_chances
from prompt_core.tuning.label_tree import LabelTree
from prompt_core.tuning.likelihood import next_token_losses

# Segments and parents of a `Tree`, and its rows where the loss needs some only.
Segments = tuple[list[Sequence[int]], list[int] | None] | tuple[list[Sequence[int]], list[int] | None, list[int]]


class Objective(nn.Module, ABC):
    """A loss over examples, with whatever it trains beside the prompt as its parameters.

    It comes in two halves, so that many prompts with objectives of their own share one pass: what stands behind the
    prompt, and the loss of its hidden states.

    Attributes:
        label_tokens: of the longest label that stands behind an input to be scored; 0 where none does.
    """

    label_tokens = 0

    def weight(self, example: Encoded) -> int:
        """How much an example counts in a batch's mean: its terms in the sum that `loss` returns."""
        return 1

    def tokens(self, example: Encoded) -> int:
        """How many tokens an example takes in a pass."""
        return len(example.input) + len(example.target)

    @abstractmethod
    def segments(self, examples: Sequence[Encoded]) -> Segments:
        """A `Tree` over the examples."""

    @abstractmethod
    def loss(self, states: Tensor, examples: Sequence[Encoded]) -> Tensor:
        """Summed loss, a float32 scalar, of the last hidden states [n, H] of `segments` or its rows; smoothed in training mode."""

    def scoring_tokens(self, example: Encoded) -> int:
        """`tokens` of an example in a pass that scores."""
        return self.tokens(example)

    def scoring_segments(self, examples: Sequence[Encoded]) -> Segments:
        """`segments` of a pass that scores, whose states `scores` takes."""
        return self.segments(examples)

    def order(self, examples: Sequence[Encoded], size: int, generator: torch.Generator) -> list[int]:
        """Indices of one round of examples, in the order in which batches of `size` take them; drawn anew for every round."""
        drawn: list[int] = torch.randperm(len(examples), generator=generator).tolist()
        return drawn

    def settle(self, prompt: PromptState, examples: Sequence[Encoded]) -> None:
        """Fit what follows the tuning: called once when it ends, with the kept parameters in place.

        Args:
            prompt: the kept prompt.
            examples: those that it was tuned on.
        """

    def tensors(self) -> dict[str, Tensor]:
        """What the artifact keeps beside the prompt, float32 on the CPU."""
        return {name: parameter.detach().cpu() for name, parameter in self.named_parameters()}


class Generation(Objective):
    """Cross-entropy of the target tokens, each given the prompt, the input and the target before it.

    Args:
        smoothing: label smoothing while training.
    """

    def __init__(self, backbone: Backbone, smoothing: float = 0.0) -> None:
        super().__init__()
        self._backbone, self._smoothing = backbone, smoothing

    def weight(self, example: Encoded) -> int:
        return len(example.target)

    def segments(self, examples: Sequence[Encoded]) -> Segments:
        return [e.input + e.target[:-1] for e in examples], None, self._rows(examples)

    def loss(self, states: Tensor, examples: Sequence[Encoded]) -> Tensor:
        targets = torch.tensor([token for e in examples for token in e.target], device=states.device)
        return next_token_losses(self._backbone, states, None, targets, self._smoothing if self.training else 0.0).sum()

    def _rows(self, examples: Sequence[Encoded]) -> list[int]:
        """Those that predict a target token: no other passes the head, the widest matrix product of a small model."""
        rows: list[int] = []
        end = 0
        for example in examples:
            end += self._states(example)
            rows += range(end - len(example.target), end)
        return rows

    def _states(self, example: Encoded) -> int:
        """Hidden states of an example; the last ones predict its target."""
        return len(example.input) + len(example.target) - 1


class Transduction(Generation):
    """Generation with an encoder-decoder: the encoder reads the input behind the prompt, the decoder the target so far."""

    def __init__(self, backbone: EncoderDecoder, smoothing: float = 0.0) -> None:
        super().__init__(backbone, smoothing)
        self._start = backbone.decoder_start

    def segments(self, examples: Sequence[Encoded]) -> Segments:
        pairs = [(e.input, (self._start, *e.target[:-1])) for e in examples]
        parents = [parent for i in range(len(pairs)) for parent in (-1, 2 * i)]
        return [ids for pair in pairs for ids in pair], parents, self._rows(examples)

    def _states(self, example: Encoded) -> int:
        return len(example.input) + len(example.target)


class Classification(Objective):
    """Base of the classifiers: cross-entropy over the labels' scores. A target is encoded as its label's index.

    Args:
        smoothing: label smoothing while training.

    Attributes:
        label_bias: what `final_scores` subtracts from the labels' scores, float32 [labels]; None for nothing.
        calibration: given one, `settle` measures that bias on the training inputs and these.
    """

    def __init__(self, backbone: Backbone, smoothing: float) -> None:
        super().__init__()
        self._backbone, self._smoothing = backbone, smoothing
        self.label_bias: Tensor | None = None
        self.calibration: Calibration | None = None

    @abstractmethod
    def scores(self, states: Tensor, examples: Sequence[Encoded]) -> Tensor:
        """One score per example and label, float32 [examples, labels]; the highest is the prediction."""

    def loss(self, states: Tensor, examples: Sequence[Encoded]) -> Tensor:
        return self.cross_entropy(self.scores(states, examples), torch.tensor([e.target[0] for e in examples], device=states.device))

    def cross_entropy(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Summed over the examples; smoothed in training mode."""
        return F.cross_entropy(scores, targets, reduction="sum", label_smoothing=self._smoothing if self.training else 0.0)

    def scores_behind(self, prompt: PromptState, examples: Sequence[Encoded]) -> Tensor:
        """Final scores of examples behind one prompt, float32 [examples, labels]; after `settle` those of the artifact."""
        (states,) = hidden_states(self._backbone, [Tree(prompt, *self.scoring_segments(examples))])
        return self.final_scores(states, examples)

    def final_scores(self, states: Tensor, examples: Sequence[Encoded]) -> Tensor:
        """`scores` without the bias that was measured, float32 [examples, labels]."""
        scores = self.scores(states, examples)
        return scores if self.label_bias is None else scores - self.label_bias

    def settle(self, prompt: PromptState, examples: Sequence[Encoded]) -> None:
        if self.calibration is None:
            return
        self.label_bias, scores = None, partial(self.scores_behind, lower(self._backbone, prompt))
        inputs, budget = [*examples, *self.calibration.inputs], self.calibration.batch_tokens
        self.label_bias = mean_log_chances(scores, inputs, self.scoring_tokens, budget)

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | ({} if self.label_bias is None else {"label_bias": self.label_bias.cpu()})


class PooledClassification(Classification):
    """Base of the classifiers that score an encoder's pooled state of the input."""

    def segments(self, examples: Sequence[Encoded]) -> tuple[list[Sequence[int]], None]:
        return [e.input for e in examples], None

    def outputs(self, states: Tensor, examples: Sequence[Encoded]) -> Tensor:
        """The inputs' embeddings, of unit length, float32 [examples, H]."""
        return F.normalize(self._backbone.pool(states, [len(e.input) for e in examples]).float(), dim=-1)


class LabelAnchors(PooledClassification):
    """Classification with an encoder: cosine of the input's pooled state and one trainable anchor per label.

    Args:
        anchors: where they start, [labels, H]: usually the label descriptions as the frozen encoder sees them.
        scale: factor on the cosine in the softmax.
        smoothing: label smoothing while training.
    """

    def __init__(self, backbone: Backbone, anchors: Tensor, scale: float, smoothing: float = 0.0) -> None:
        super().__init__(backbone, smoothing)
        self._scale = scale
        self.anchors = nn.Parameter(F.normalize(anchors.detach().float(), dim=-1))

    def scores(self, states: Tensor, examples: Sequence[Encoded]) -> Tensor:
        return self.scores_of(self.outputs(states, examples))

    def scores_of(self, embeddings: Tensor) -> Tensor:
        """Scores of embeddings of unit length [n, H], float32 [n, labels]."""
        return self._scale * embeddings @ F.normalize(self.anchors, dim=-1).T


class LabelWords(Classification):
    """Classification with a causal model: how likely each label's words and the end of turn are after the input.

    The labels branch off each input in the forest, as one tree of their common beginnings: an input is computed once
    for all of them, and so is what several labels begin with.

    Args:
        words: token ids of each label, ending in the end of turn, at least one token each, no label twice.
        normalised: score a label by the mean over its tokens (Brown et al. 2020, arXiv:2005.14165), else by their sum.
        smoothing: label smoothing while training.
        ways: how many of the `words` in turn say each label, if not one; its score is then log-mean-exp of theirs.
    """

    def __init__(
        self,
        backbone: Backbone,
        words: Sequence[Sequence[int]],
        normalised: bool = True,
        smoothing: float = 0.0,
        ways: Sequence[int] | None = None,
    ) -> None:
        super().__init__(backbone, smoothing)
        self.label_tokens = max(map(len, words)) - 1  # the last one is predicted and not read
        self._branches, self._ways = LabelTree(words), None if ways is None or max(ways) == 1 else list(ways)
        self._per_token = torch.tensor([1 / len(ids) if normalised else 1.0 for ids in words], device=backbone.device)

    def tokens(self, example: Encoded) -> int:
        return len(example.input) + self._branches.num_tokens

    def segments(self, examples: Sequence[Encoded]) -> Segments:
        branches = self._branches
        segments: list[Sequence[int]] = []
        parents: list[int] = []
        rows: list[int] = []
        end = 0
        for example in examples:
            root = len(segments)
            segments += [example.input, *branches.segments]
            parents += [-1, *(root + 1 + parent for parent in branches.parents)]
            # The input's last row predicts each label's first word, a label's own rows predict the words after.
            start, end = end + len(example.input) - 1, end + len(example.input) + branches.num_tokens
            rows += range(start, end)
        return segments, parents, rows

    def scores(self, states: Tensor, examples: Sequence[Encoded]) -> Tensor:
        branches, device = self._branches, states.device
        number = torch.arange(len(examples), device=device)[:, None]
        row_of = torch.tensor(branches.row_of, device=device) + number * (branches.num_tokens + 1)
        targets = row_of.new_tensor(branches.targets).expand(len(examples), -1)
        losses = next_token_losses(self._backbone, states, row_of.flatten(), targets.flatten()).view(targets.shape)
        member = torch.tensor(branches.members, device=device)
        totals = losses.new_zeros(len(examples), len(self._per_token)).index_add(1, member[:, 1], losses[:, member[:, 0]])
        said = -totals * self._per_token
        if self._ways is None:
            return said
        return torch.stack([own.logsumexp(-1) - math.log(own.shape[1]) for own in torch.split(said, self._ways, -1)], -1)


def embed_texts(backbone: Backbone, prompt: PromptState, inputs: Sequence[Sequence[int]]) -> Tensor:
    """Unit-length pooled states of token sequences behind a prompt, float32 [n, H]."""
    (states,) = hidden_states(backbone, [Tree(prompt, inputs)])
    return F.normalize(backbone.pool(states, [len(ids) for ids in inputs]).float(), dim=-1)
