"""`Judge`: what candidates are worth on training examples, from one packed pass over many, each score paid for once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.encoding import Encoded
from prompt_core.errors import PromptmillError
from prompt_core.prompts import PromptState, Tree, hidden_states
from prompt_core.task import TaskSpec
from prompt_core.text.budget import Budget
from prompt_core.text.candidate import Candidate
from prompt_core.text.journal import Journal
from prompt_core.text.race import Values
from prompt_core.text.score import Question, score_prompts

_TIE = 0.1  # of a right answer: what its probability decides between prompts that are right equally often


class OutOfBudget(Exception):
    """A question that the budget does not admit; the message says which limit."""


class Judge:
    """Scores candidates on the rows of a task.

    Args:
        task: whose template the candidates vary.
        backbone: the frozen model.
        rows: the training rows.
        labels: of a classifier, in order; none for a task that generates.
        journal: what was scored before.
        budget: is asked before each pass.
    """

    def __init__(
        self,
        task: TaskSpec,
        backbone: Backbone,
        rows: Sequence[Mapping[str, Any]],
        labels: Sequence[str],
        journal: Journal,
        budget: Budget,
    ) -> None:
        self._task, self._backbone, self._labels = task, backbone, list(labels)
        self.rows, self._journal, self._budget = list(rows), journal, budget
        self._by_id = {row["_id"]: row for row in rows}
        self._base = f"{backbone.identity.weights}/{backbone.identity.tokenizer}/{backbone.identity.dtype}/{task.tune.label_score}"
        self._questions: dict[str, Question] = {}

    def question(self, candidate: Candidate) -> Question:
        """The candidate made ready.

        Raises:
            PromptmillError: it does not fit the model's context or the task's fields.
        """
        if candidate.digest not in self._questions:
            prompt = candidate.prompt(self._task, self._by_id)
            self._questions[candidate.digest] = Question.of(self._task, prompt, self._backbone, self._labels)
        return self._questions[candidate.digest]

    def tokens(self, candidate: Candidate) -> int:
        """How long the prompt is."""
        return len(self.question(candidate).root.root)

    def scores(self, candidates: Sequence[Candidate], numbers: Sequence[int]) -> list[Values]:
        """Label scores [n, labels], or mean log-likelihoods of the target's tokens [n, 1], of each candidate on some rows.

        Raises:
            OutOfBudget: the scores that are not known yet would pass a limit.
        """
        keys = [[self._key(candidate, number) for number in numbers] for candidate in candidates]
        missing = {key: (c, n) for c, own in zip(candidates, keys, strict=True) for n, key in zip(numbers, own, strict=True)}
        missing = {key: pair for key, pair in missing.items() if self._journal.get(key) is None}
        if missing:
            self._pay(missing)
        return [np.array([self._journal.get(key) for key in own], dtype=np.float64) for own in keys]

    def values(self, candidate: Candidate, scores: Values, numbers: Sequence[int]) -> Values:
        """What the candidate is worth on each row, from its scores: right answers, and as a tie-break how sure they are.

        A text counts as the mean log-likelihood of its tokens. NaN for rows that the candidate shows.
        """
        rows = [self.rows[number] for number in numbers]
        if not self._labels:
            values = scores[:, 0].copy()
        else:
            logs = _log_softmax(scores)
            if candidate.calibrated:
                logs = _log_softmax(logs - logs.mean(0))
            right = np.array([self._labels.index(row[self._task.data.target]) for row in rows])
            chances = np.exp(logs[np.arange(len(rows)), right])
            values = (logs.argmax(1) == right) + _TIE * chances
        values[[row["_id"] in candidate.shown for row in rows]] = np.nan
        return values

    def loss(self, question: Question, root: PromptState, numbers: Sequence[int]) -> Tensor:
        """Mean cross-entropy of the right answers behind `root`, differentiable in what it holds; a float32 scalar.

        Raises:
            OutOfBudget: the pass would exceed a limit.
        """
        examples = [question.encode(self._task, dict(self.rows[number])) for number in numbers]
        cost = len(root.root) + sum(map(question.tokens, examples))
        if reason := self._budget.reason(tokens=cost):
            raise OutOfBudget(reason)
        self._budget.spent_tokens += cost
        (states,) = hidden_states(self._backbone, [Tree(root, *question.segments(examples))])
        scores = question.scores(self._backbone, states, examples)
        if not self._labels:
            return -scores.mean()
        right = [self._labels.index(self.rows[number][self._task.data.target]) for number in numbers]
        return F.cross_entropy(scores, torch.tensor(right, device=scores.device))

    def _pay(self, missing: Mapping[str, tuple[Candidate, int]]) -> None:
        by_candidate: dict[str, tuple[Question, list[str], list[Encoded]]] = {}
        for key, (candidate, number) in missing.items():
            question = self.question(candidate)
            _, keys, examples = by_candidate.setdefault(candidate.digest, (question, [], []))
            keys.append(key)
            examples.append(question.encode(self._task, dict(self.rows[number])))
        groups = list(by_candidate.values())
        cost = sum(len(question.root.root) + sum(map(question.tokens, examples)) for question, _, examples in groups)
        if reason := self._budget.reason(tokens=cost):
            raise OutOfBudget(reason)
        self._budget.spent_tokens += cost
        found = score_prompts(self._backbone, [g[0] for g in groups], [g[2] for g in groups], self._task.tune.batch_tokens)
        self._journal.put(
            {key: row for (_, keys, _), scores in zip(groups, found, strict=True) for key, row in zip(keys, scores.tolist(), strict=True)}
        )

    def _key(self, candidate: Candidate, number: int) -> str:
        """Of one score: model, prompt and row by content. Calibration comes after the score."""
        prompt = candidate.prompt(self._task, self._by_id).model_dump_json()
        row = self.rows[number]
        about = "\n".join([self._base, prompt, "\n".join(self._labels), row["_id"], str(row[self._task.data.target])])
        return hashlib.sha256(about.encode()).hexdigest()[:32]


def fits(judge: Judge, candidate: Candidate) -> str | None:
    """Why a candidate cannot be asked; None if it can."""
    try:
        judge.question(candidate)
    except PromptmillError as error:
        return f"{error.what}"
    return None


def _log_softmax(scores: Values) -> Values:
    shifted = scores - scores.max(1, keepdims=True)
    result: Values = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result
