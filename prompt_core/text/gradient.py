"""Wordings by gradient: tokens exchanged where the loss would fall most, among those that the frozen model finds fluent there.

AutoPrompt (Shin et al. 2020, arXiv:2010.15980) and GCG (Zou et al. 2023, arXiv:2307.15043) rank exchanges by the gradient
of the loss in a token's embedding. The fluency term is the model's own log-probability of the token given those before it.
An encoder has no head to say that: whole words alone are exchanged there, and a wording begins with words of the labels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import torch
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.prompts import PromptState, Tree, hidden_states
from prompt_core.task import TaskSpec
from prompt_core.text.candidate import Candidate
from prompt_core.text.judge import Judge
from prompt_core.text.search import Tried
from prompt_core.tokens import Tokens
from prompt_core.tuning.build import describe

_EXAMPLES = 16  # that the gradient is of
_BEST = 32  # exchanges per position that are drawn from
_BEGUN = (1, 2, 3, 4)  # words of a first wording
_WORD = re.compile(r"[\u0120\u2581]?[A-Za-z]{2,}")  # with the marks that tokenizers put before a word


class GradientEdits:
    """Exchanges tokens of a wording.

    Args:
        task: whose labels an encoder's first wording takes its words from.
        judge: reads candidates and computes the loss.
        backbone: a causal model or an encoder.
        fluency: weight of the log-probability, against the expected fall of the loss in nats per example.
        together: wordings per call.
    """

    def __init__(self, task: TaskSpec, judge: Judge, backbone: Backbone, fluency: float = 0.05, together: int = 4) -> None:
        self._task, self._judge, self._backbone, self._fluency, self._together = task, judge, backbone, fluency, together
        banned = set(Tokens(backbone.tokenizer).special)
        if not backbone.generates:
            tokens = backbone.tokenizer.convert_ids_to_tokens(list(range(len(backbone.vocabulary))))
            banned.update(i for i, token in enumerate(tokens) if not (token and _WORD.fullmatch(token)))
        self._banned = torch.tensor(sorted(banned), device=backbone.device)

    def __call__(self, ranked: Sequence[Tried], random: Random) -> list[str]:
        """New wordings, each one or two tokens away from one of the best."""
        tried = ranked[min(random.randrange(3), len(ranked) - 1)]
        candidate = tried.candidate if tried.candidate.wording or self._backbone.generates else self._begun(tried.candidate, random)
        encoding, front = self._judge.encoding(candidate), self._judge.front(candidate)
        span = _span(front, encoding.encode_bare(candidate.wording), encoding.encode_bare(" " + candidate.wording))
        if span is None:  # it stands behind the input, or melts into what is around it
            return []
        first, last = span
        numbers = self._judge.judging(candidate)
        random.shuffle(numbers)
        worth = self._exchanges(candidate, front, first, last, numbers[:_EXAMPLES])
        found = []
        for _ in range(self._together):
            tokens = list(front[first:last])
            for _ in range(random.choice((1, 1, 2))):
                position = random.randrange(len(tokens))
                best = worth[position].topk(_BEST).indices.tolist()
                tokens[position] = best[min(random.randrange(_BEST), random.randrange(_BEST))]
            found.append(encoding.decode(tokens))
        return found

    def _begun(self, candidate: Candidate, random: Random) -> Candidate:
        """The candidate with a few words of its labels as a wording."""
        labels = sorted({row[self._task.data.target] for row in self._judge.rows})
        words = [word for label in labels for word in describe(self._task, label).split()]
        wording = " ".join(random.choice(words) for _ in range(random.choice(_BEGUN)))
        return replace(candidate, wording=wording, structure="before")

    def _exchanges(self, candidate: Candidate, front: Sequence[int], first: int, last: int, numbers: Sequence[int]) -> Tensor:
        """What each token of the vocabulary would be worth at each position of the wording, [last - first, V], float32."""
        backbone = self._backbone
        with torch.no_grad():
            rows = backbone.embed(torch.tensor(front[first:last], device=backbone.device)).float()
        rows.requires_grad_()
        loss = self._judge.loss(candidate, first, rows, numbers)
        (slope,) = torch.autograd.grad(loss, rows)
        with torch.no_grad():
            vocabulary = backbone.vocabulary.float()
            worth = (slope * rows).sum(-1, keepdim=True) - slope @ vocabulary.T
            if backbone.generates:
                worth += self._fluency * self._fluent(front, first, last)
            worth[:, self._banned] = -torch.inf
            worth.scatter_(1, torch.tensor(front[first:last], device=worth.device)[:, None], -torch.inf)
        return worth

    def _fluent(self, root: Sequence[int], first: int, last: int) -> Tensor:
        """Log-probabilities of every token at positions first..last - 1, each given those before it."""
        whole = PromptState.of(self._backbone)
        (states,) = hidden_states(self._backbone, [Tree(whole, [list(root[: max(last - 1, 1)])])])
        logits = self._backbone.logits(states[max(first - 1, 0) : last - 1]).float().log_softmax(-1)
        return logits if first else torch.cat([logits.new_zeros(1, logits.shape[1]), logits])


def _span(root: Sequence[int], *wordings: Sequence[int]) -> tuple[int, int] | None:
    """Where one of the token sequences stands in the root."""
    for ids in wordings:
        for start in range(len(root) - len(ids) + 1):
            if ids and list(root[start : start + len(ids)]) == list(ids):
                return start, start + len(ids)
    return None
