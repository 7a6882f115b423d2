"""Contrastive objectives: an encoder's embeddings are tuned by comparing examples with each other, then a head is fitted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.data.packing import pack
from prompt_core.encoded import Encoded
from prompt_core.errors import PromptmillError
from prompt_core.prompts import PromptState
from prompt_core.task import TaskSpec
from prompt_core.tuning.heads import LinearHead, fit_logistic, fit_means
from prompt_core.tuning.joint import Joint
from prompt_core.tuning.objective import LabelAnchors, PooledClassification, embed_texts

_LEAST_PER_LABEL = 4  # examples of a label that stand together, so that a batch has positive pairs
_COMPARED = 1024  # examples whose pairs are formed; a larger batch (of validation) is compared in blocks of this many

Comparison = Callable[[Tensor, Tensor], Tensor]


def pairs_loss(embeddings: Tensor, targets: Tensor) -> Tensor:
    """Squared error of each pair's cosine against 1 (one label) or 0 (two labels), mean over the batch.

    All positive pairs together weigh as much as all negative ones: of few examples per label nearly all are negative.
    The regression on the cosine is that of Sentence-BERT (Reimers & Gurevych 2019, arXiv:1908.10084), on pairs as SetFit
    forms them (Tunstall et al. 2022, arXiv:2209.11055).

    Args:
        embeddings: of unit length, [n, H].
        targets: labels, int64 [n].

    Returns:
        A scalar; a kind of pair that the batch does not have contributes nothing.
    """
    cosines, same = embeddings @ embeddings.T, targets[:, None] == targets
    upper = torch.ones_like(same).triu(1)
    positive, negative = same & upper, ~same & upper
    missed = (1 - cosines).square() * positive
    return (missed.sum() / positive.sum().clamp(min=1) + (cosines.square() * negative).sum() / negative.sum().clamp(min=1)) / 2


def supervised_contrastive_loss(embeddings: Tensor, targets: Tensor, scale: float) -> Tensor:
    """Supervised contrastive loss, L_out of Khosla et al. 2020 (arXiv:2004.11362), mean over the examples that have a positive.

    Args:
        embeddings: of unit length, [n, H].
        targets: labels, int64 [n].
        scale: factor on the cosine, the inverse of the paper's temperature.

    Returns:
        A scalar; zero where no two examples have one label.
    """
    itself = torch.eye(len(targets), dtype=torch.bool, device=targets.device)
    logits = (scale * embeddings @ embeddings.T).masked_fill(itself, -torch.inf)
    chances = (logits - logits.logsumexp(1, keepdim=True)).masked_fill(itself, 0)
    positive = (targets[:, None] == targets) & ~itself
    count = positive.sum(1)
    each = -(chances * positive).sum(1) / count.clamp(min=1)
    return each.sum() / (count > 0).sum().clamp(min=1)


class Contrastive(PooledClassification, Joint):
    """Classification with an encoder whose embeddings are tuned on comparisons; a head on them is fitted at the end.

    Batches are drawn by label, several examples of each, so that they have pairs of both kinds and every label counts the
    same. Scores exist after `settle`.

    Args:
        labels: how many there are.
        compare: the loss of embeddings of unit length [n, H] and their targets [n].
        head: `means` or `logistic`.
        scale: factor on the cosine to a mean, for the head `means`.
        c: scikit-learn's C, for the head `logistic`.
        batch_tokens: of one pass when the head is fitted.
    """

    def __init__(
        self, backbone: Backbone, labels: int, compare: Comparison, *, head: str, scale: float, c: float, batch_tokens: int
    ) -> None:
        super().__init__(backbone, smoothing=0.0)
        self._labels, self._compare, self._kind = labels, compare, head
        self._scale, self._c, self._batch_tokens = scale, c, batch_tokens
        self.head: LabelAnchors | LinearHead | None = None

    def order(self, examples: Sequence[Encoded], size: int, generator: torch.Generator) -> list[int]:
        """One round over the labels in random order, the same number of examples drawn from each; all of a smaller one."""
        members: dict[int, list[int]] = {}
        for number, example in enumerate(examples):
            members.setdefault(example.target[0], []).append(number)
        groups = list(members.values())
        count = max(_LEAST_PER_LABEL, -(-min(size, len(examples)) // len(groups)))
        drawn: list[int] = []
        for which in torch.randperm(len(groups), generator=generator).tolist():
            group = groups[which]
            drawn += [group[i] for i in torch.randperm(len(group), generator=generator)[:count].tolist()]
        return drawn

    def loss(self, states: Tensor, examples: Sequence[Encoded]) -> Tensor:
        return self.joint_loss(self.outputs(states, examples), examples)

    def joint_loss(self, outputs: Tensor, examples: Sequence[Encoded]) -> Tensor:
        return _compared(self._compare, outputs, _targets(examples, outputs.device))

    @torch.no_grad()
    def settle(self, prompt: PromptState, examples: Sequence[Encoded]) -> None:
        embeddings, targets = _embedded(self._backbone, prompt, examples, self._batch_tokens)
        if self._kind == "means":
            self.head = fit_means(self._backbone, embeddings, targets, self._labels, self._scale)
        else:
            self.head = fit_logistic(self._backbone, embeddings, targets, self._labels, self._c)
        super().settle(prompt, examples)

    def scores(self, states: Tensor, examples: Sequence[Encoded]) -> Tensor:
        if self.head is None:
            raise RuntimeError("the head is fitted by `settle`, when the tuning ends")
        return self.head.scores(states, examples)

    def tensors(self) -> dict[str, Tensor]:
        return {name.removeprefix("head."): tensor for name, tensor in super().tensors().items()}


class ContrastedAnchors(LabelAnchors, Joint):
    """Label anchors whose training also compares the texts of a batch with each other.

    The loss is the cross-entropy over the labels plus `weight` times `pairs_loss`, as Gunel et al. 2021 (arXiv:2011.01403)
    add a contrastive loss where examples are few. In evaluation mode it is the cross-entropy alone.
    """

    def __init__(self, backbone: Backbone, anchors: Tensor, scale: float, weight: float, smoothing: float = 0.0) -> None:
        super().__init__(backbone, anchors, scale, smoothing)
        self._weight = weight

    def loss(self, states: Tensor, examples: Sequence[Encoded]) -> Tensor:
        return self.joint_loss(self.outputs(states, examples), examples)

    def joint_loss(self, outputs: Tensor, examples: Sequence[Encoded]) -> Tensor:
        targets = _targets(examples, outputs.device)
        missed = self.cross_entropy(self.scores_of(outputs), targets)
        return missed + self._weight * _compared(pairs_loss, outputs, targets) if self.training else missed


class RefittedAnchors(ContrastedAnchors):
    """Label anchors whose place a logistic regression on the tuned embeddings takes when the tuning ends.

    Args:
        c: scikit-learn's C.
        batch_tokens: of one pass when it is fitted.
    """

    def __init__(
        self, backbone: Backbone, anchors: Tensor, scale: float, weight: float, smoothing: float, *, c: float, batch_tokens: int
    ) -> None:
        super().__init__(backbone, anchors, scale, weight, smoothing)
        self._c, self._batch_tokens = c, batch_tokens
        self.head: LinearHead | None = None

    @torch.no_grad()
    def settle(self, prompt: PromptState, examples: Sequence[Encoded]) -> None:
        embeddings, targets = _embedded(self._backbone, prompt, examples, self._batch_tokens)
        self.head = fit_logistic(self._backbone, embeddings, targets, len(self.anchors), self._c)
        super().settle(prompt, examples)

    def scores(self, states: Tensor, examples: Sequence[Encoded]) -> Tensor:
        return super().scores(states, examples) if self.head is None else self.head.scores(states, examples)

    def tensors(self) -> dict[str, Tensor]:
        return {name.removeprefix("head."): tensor for name, tensor in super().tensors().items() if name != "anchors"}


def check_pairs(task: TaskSpec, train: Sequence[Encoded], validation: Sequence[Encoded]) -> None:
    """Refuse examples that a contrastive loss has nothing to compare in.

    Raises:
        PromptmillError: one label only, or a side without two examples of one label.
    """
    where, loss = f"task {task.name}: tune.loss", task.tune.loss
    if len({example.target[0] for example in train}) < 2:
        raise PromptmillError(where, f"{loss} compares labels, but all training examples have the same", "Add examples of another.")
    for side, examples in (("training", train), ("validation", validation)):
        if examples and max(Counter(example.target[0] for example in examples).values()) < 2:
            what = f"{loss} compares examples of one label, but no two {side} examples have one"
            raise PromptmillError(where, what, "Add examples, set data.validation to 0 or use label_set.")


def _compared(compare: Comparison, outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean loss of a batch times its number of examples, in blocks where it is large."""
    blocks = zip(torch.split(outputs, _COMPARED), torch.split(targets, _COMPARED), strict=True)
    return torch.stack([compare(rows, own) * len(own) for rows, own in blocks]).sum()


def _embedded(backbone: Backbone, prompt: PromptState, examples: Sequence[Encoded], batch_tokens: int) -> tuple[Tensor, Tensor]:
    """Embeddings of unit length [n, H] and targets [n] of examples, in their order."""
    batches = pack(examples, lambda example: len(example.input), batch_tokens)
    embeddings = torch.cat([embed_texts(backbone, prompt, [e.input for e in batch]) for batch in batches])
    return embeddings, _targets(examples, embeddings.device)


def _targets(examples: Sequence[Encoded], device: torch.device) -> Tensor:
    return torch.tensor([example.target[0] for example in examples], device=device)
