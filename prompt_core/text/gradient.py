"""Wordings by gradient: tokens exchanged where the loss would fall most, among those that the frozen model finds fluent there.

AutoPrompt (Shin et al. 2020, arXiv:2010.15980) and GCG (Zou et al. 2023, arXiv:2307.15043) rank exchanges by the gradient
of the loss in a token's embedding. The fluency term is the model's own log-probability of the token given those before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

import torch
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.encoding import soft_ids
from prompt_core.prompts import PromptState, Tree, hidden_states
from prompt_core.text.judge import Judge
from prompt_core.text.score import Question
from prompt_core.text.search import Tried

_EXAMPLES = 16  # that the gradient is of
_BEST = 32  # exchanges per position that are drawn from


class GradientEdits:
    """Exchanges tokens of a wording.

    Args:
        judge: prepares candidates.
        backbone: a causal model.
        fluency: weight of the log-probability, against the expected fall of the loss in nats per example.
        together: wordings per call.
    """

    def __init__(self, judge: Judge, backbone: Backbone, fluency: float = 0.05, together: int = 4) -> None:
        self._judge, self._backbone, self._fluency, self._together = judge, backbone, fluency, together
        special = backbone.tokenizer.all_special_ids
        self._banned = torch.tensor(sorted(set(special)), device=backbone.device)

    def __call__(self, ranked: Sequence[Tried], random: Random) -> list[str]:
        """New wordings, each one or two tokens away from one of the best."""
        tried = ranked[min(random.randrange(3), len(ranked) - 1)]
        question = self._judge.question(tried.candidate)
        ids = question.encoding.encode_bare(tried.candidate.wording)
        span = _span(question.root.root, ids, question.encoding.encode_bare(" " + tried.candidate.wording))
        if span is None:  # it stands behind the input, or melts into what is around it
            return []
        first, last = span
        numbers = [n for n in range(len(self._judge.rows)) if self._judge.rows[n]["_id"] not in tried.candidate.shown]
        random.shuffle(numbers)
        worth = self._exchanges(question, first, last, numbers[:_EXAMPLES])
        found = []
        for _ in range(self._together):
            tokens = list(question.root.root[first:last])
            for _ in range(random.choice((1, 1, 2))):
                position = random.randrange(len(tokens))
                best = worth[position].topk(_BEST).indices.tolist()
                tokens[position] = best[min(random.randrange(_BEST), random.randrange(_BEST))]
            found.append(question.encoding.decode(tokens))
        return found

    def _exchanges(self, question: Question, first: int, last: int, numbers: Sequence[int]) -> Tensor:
        """What each token of the vocabulary would be worth at each position of the wording, [last - first, V], float32."""
        backbone, root = self._backbone, question.root.root
        with torch.no_grad():
            rows = backbone.embed(torch.tensor(root[first:last], device=backbone.device)).float()
        rows.requires_grad_()
        state = replace(question.root, rows=rows, root=(*root[:first], *soft_ids(last - first), *root[last:]))
        loss = self._judge.loss(question, state, numbers)
        (slope,) = torch.autograd.grad(loss, rows)
        with torch.no_grad():
            vocabulary = backbone.vocabulary.float()
            fall = (slope * rows).sum(-1, keepdim=True) - slope @ vocabulary.T
            worth = fall + self._fluency * self._fluent(root, first, last)
            worth[:, self._banned] = -torch.inf
            worth.scatter_(1, torch.tensor(root[first:last], device=worth.device)[:, None], -torch.inf)
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
