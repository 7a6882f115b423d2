"""`Judge`: what candidates are worth on training examples, each score paid for once. How they are scored, its kinds know."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.data.demonstrations import first_rows
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError
from prompt_core.task import TaskSpec
from prompt_core.template import Template
from prompt_core.text.budget import Budget
from prompt_core.text.candidate import Candidate
from prompt_core.text.journal import Journal
from prompt_core.text.race import Values
from prompt_core.tuning.build import answer
from prompt_core.tuning.prepared import library_versions

_TIE = 0.1  # of a right answer: what its probability decides between prompts that are right equally often


class Judge(ABC):
    """Scores candidates on the rows of a task.

    Args:
        task: whose template the candidates vary.
        backbone: the frozen model.
        rows: the training rows, in an order of content.
        labels: of a classifier, in order; none for a task that generates.
        journal: what was scored before.
        budget: is asked before each pass.

    Attributes:
        rows, by_id: the training rows, and by their ids; of a text with several targets the first.
        numbers: of those first rows, by id.
        budget: as given.
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
        self.rows, self._journal, self.budget = [dict(row) for row in rows], journal, budget
        self.numbers = first_rows([row["_id"] for row in self.rows])
        self.by_id = {row: self.rows[number] for row, number in self.numbers.items()}
        self._right = np.array([self._labels.index(row[task.data.target]) for row in self.rows] if labels else [], dtype=np.int64)
        spec, identity = task.tune, backbone.identity
        reading = [spec.max_tokens, spec.truncate, spec.batch_tokens, backbone.device.type]
        self._base = json.dumps([identity.weights, identity.tokenizer, identity.dtype, *reading, *library_versions().values()])

    @abstractmethod
    def encoding(self, candidate: Candidate) -> TaskEncoding:
        """How the candidate is read.

        Raises:
            PromptmillError: it does not fit the model's context or the task's fields.
        """

    @abstractmethod
    def front(self, candidate: Candidate) -> tuple[int, ...]:
        """The tokens that every input is read behind."""

    @abstractmethod
    def tokens(self, candidate: Candidate) -> int:
        """How long the prompt is: what stands in front of an input and behind it."""

    @abstractmethod
    def values(self, candidates: Sequence[Candidate], numbers: Sequence[int]) -> list[Values]:
        """What each candidate is worth on some rows, float64 [n]: right answers, and as a tie-break how sure they are.

        A text counts as the mean log-likelihood of its tokens. NaN for rows that must not judge, since the candidate shows them.

        Raises:
            OutOfBudget: what is not known yet would pass a limit.
        """

    @abstractmethod
    def scores(self, candidate: Candidate, numbers: Sequence[int]) -> Values:
        """Label scores [n, labels], or mean log-likelihoods of the target's tokens [n, 1], of a candidate on some rows.

        Raises:
            OutOfBudget: what is not known yet would pass a limit.
        """

    @abstractmethod
    def loss(self, candidate: Candidate, first: int, rows: Tensor, numbers: Sequence[int]) -> Tensor:
        """Mean cross-entropy of the right answers, differentiable in `rows`, a float32 scalar.

        Args:
            candidate: whose prompt is read.
            first: where in its `front` the tokens begin that `rows` replace.
            rows: their input embeddings, [tokens, H].
            numbers: of the training rows.

        Raises:
            OutOfBudget: the pass would exceed a limit.
        """

    def judging(self, candidate: Candidate) -> list[int]:
        """The rows that may judge a candidate."""
        return list(range(len(self.rows)))

    @abstractmethod
    def truncated(self, candidate: Candidate) -> int:
        """How many of the rows are cut to fit."""

    @abstractmethod
    def _met(self, candidate: Candidate) -> list[int]:
        """The rows that a candidate has met."""

    def mistakes(self, candidate: Candidate) -> list[tuple[str, str, str]]:
        """Input, right answer and given answer of rows that the candidate met and gets wrong; the worst first where it writes texts."""
        met = self._met(candidate)
        if not met:
            return []
        scores, (values,) = self.scores(candidate, met), self.values([candidate], met)
        worst = np.argsort(values, kind="stable")  # NaN, a row that it shows, comes last
        task, fields = candidate.prompt(self._task, self.by_id).applied_to(self._task), Template(self._task).fields
        found = []
        for place in worst[: len(met) // 2].tolist():
            row = self.rows[met[place]]
            right, given = row[task.data.target], self._labels[int(scores[place].argmax())] if self._labels else None
            if given != right:
                shown = answer(task, given) if given is not None else "(another one)"
                found.append(("\n".join(str(row[name]) for name in fields), answer(task, right), shown))
        return found

    def label_bias(self, candidate: Candidate) -> Tensor:
        """Each label's mean log-probability over all inputs, float32 [labels], see `tuning.calibration`."""
        scores = torch.from_numpy(self.scores(candidate, range(len(self.rows))))
        return scores.log_softmax(-1).mean(0).float()

    def _worth(self, candidate: Candidate, scores: Values, numbers: Sequence[int]) -> Values:
        """Values from scores, whether a row may judge or not."""
        if not self._labels:
            return scores[:, 0].copy()
        logs = _log_softmax(scores)
        if candidate.calibrated:
            logs = _log_softmax(logs - logs.mean(0))
        right = self._right[list(numbers)]
        values: Values = (logs.argmax(1) == right) + _TIE * np.exp(logs[np.arange(len(right)), right])
        return values


def fits(judge: Judge, candidate: Candidate) -> str | None:
    """Why a candidate cannot be asked; None if it can."""
    try:
        encoding = judge.encoding(candidate)
    except PromptmillError as error:
        return f"{error.what}"
    if special := next((mark for mark in encoding.special_texts if mark in candidate.wording), None):
        return f"holds {special}, which the model reads as a mark of its own"
    words = [word for _, said in candidate.words for word in set(said)]
    return "two labels have the same words" if len(set(words)) < len(words) else None


def _log_softmax(scores: Values) -> Values:
    shifted = scores - scores.max(1, keepdims=True)
    result: Values = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result
