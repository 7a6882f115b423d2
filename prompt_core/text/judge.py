"""`Judge`: what candidates are worth on training examples, from one packed pass over many, each score paid for once."""

from __future__ import annotations

import hashlib
import json
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
from prompt_core.template import Template
from prompt_core.text.budget import Budget
from prompt_core.text.candidate import Candidate
from prompt_core.text.journal import Journal
from prompt_core.text.race import Values
from prompt_core.text.score import Question, score_prompts
from prompt_core.tuning.build import answer
from prompt_core.tuning.prepared import library_versions

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
        self.rows, self._journal, self._budget = [dict(row) for row in rows], journal, budget
        self.by_id = {row["_id"]: row for row in rows}
        spec, identity = task.tune, backbone.identity
        reading = [spec.label_score, spec.max_tokens, spec.truncate, spec.batch_tokens, backbone.device.type]
        self._base = json.dumps([identity.weights, identity.tokenizer, identity.dtype, *reading, *library_versions().values()])
        self._questions: dict[str, Question] = {}
        self._abouts: dict[str, str] = {}
        self._charged: set[str] = set()

    @property
    def spent(self) -> tuple[int, float]:
        """Tokens and dollars so far."""
        return self._budget.spent_tokens, self._budget.spent_dollars

    def question(self, candidate: Candidate) -> Question:
        """The candidate made ready.

        Raises:
            PromptmillError: it does not fit the model's context or the task's fields.
        """
        if candidate.digest not in self._questions:
            prompt = candidate.prompt(self._task, self.by_id)
            question = Question.of(self._task, prompt, self._backbone, self._labels)
            for column in {*question.encoding.fields, self._task.data.target}:  # a wording may leave no room for the longest ones
                question.encode(self._task, max(self.rows, key=lambda row: len(str(row[column]))))
            self._questions[candidate.digest] = question
        return self._questions[candidate.digest]

    def tokens(self, candidate: Candidate) -> int:
        """How long the prompt is: what stands in front of every input and behind it."""
        question = self.question(candidate)
        return len(question.root.root) + question.encoding.tokens_behind

    def scores(self, candidates: Sequence[Candidate], numbers: Sequence[int]) -> list[Values]:
        """Label scores [n, labels], or mean log-likelihoods of the target's tokens [n, 1], of each candidate on some rows.

        Raises:
            OutOfBudget: the scores that are not known yet would pass a limit.
        """
        keys = [[self._key(candidate, number) for number in numbers] for candidate in candidates]
        asked = {key: (c, n) for c, own in zip(candidates, keys, strict=True) for n, key in zip(numbers, own, strict=True)}
        asked = {key: pair for key, pair in asked.items() if key not in self._charged}
        if asked:
            self._pay(asked)
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
        examples = [question.encode(self._task, self.rows[number]) for number in numbers]
        self.charge(len(root.root) + sum(map(question.tokens, examples)))
        (states,) = hidden_states(self._backbone, [Tree(root, *question.segments(examples))])
        scores = question.scores(self._backbone, states, examples)
        if not self._labels:
            return -scores.mean()
        right = [self._labels.index(self.rows[number][self._task.data.target]) for number in numbers]
        return F.cross_entropy(scores, torch.tensor(right, device=scores.device))

    def mistakes(self, candidate: Candidate) -> list[tuple[str, str, str]]:
        """Input, right answer and given answer of rows that the candidate met and gets wrong; the worst first where it writes texts."""
        met = [number for number in range(len(self.rows)) if self._key(candidate, number) in self._charged]
        if not met:
            return []
        (scores,) = self.scores([candidate], met)
        worst = np.argsort(self.values(candidate, scores, met), kind="stable")  # NaN, a row that it shows, comes last
        task, fields = candidate.prompt(self._task, self.by_id).applied_to(self._task), Template(self._task).fields
        found = []
        for place in worst[: len(met) // 2].tolist():
            row = self.rows[met[place]]
            right, given = row[task.data.target], self._labels[int(scores[place].argmax())] if self._labels else None
            if given != right:
                shown = answer(task, given) if given is not None else "(another one)"
                found.append(("\n".join(str(row[name]) for name in fields), answer(task, right), shown))
        return found

    def charge(self, tokens: int) -> None:
        """Book tokens through the frozen model, before they are spent.

        Raises:
            OutOfBudget: they would pass a limit.
        """
        if reason := self._budget.reason(tokens=tokens):
            raise OutOfBudget(reason)
        self._budget.spent_tokens += tokens

    def _pay(self, asked: Mapping[str, tuple[Candidate, int]]) -> None:
        """Book what is asked for the first time, whether it is known from an interrupted search or not, and find out what is not."""
        groups = self._groups(asked)
        self.charge(sum(len(question.root.root) + sum(map(question.tokens, examples)) for question, _, examples in groups))
        self._charged |= asked.keys()
        groups = self._groups({key: pair for key, pair in asked.items() if self._journal.get(key) is None})
        found = score_prompts(self._backbone, [g[0] for g in groups], [g[2] for g in groups], self._task.tune.batch_tokens)
        self._journal.put(
            {key: row for (_, keys, _), scores in zip(groups, found, strict=True) for key, row in zip(keys, scores.tolist(), strict=True)}
        )

    def _groups(self, asked: Mapping[str, tuple[Candidate, int]]) -> list[tuple[Question, list[str], list[Encoded]]]:
        """Per candidate its question, and keys and inputs of the rows."""
        groups: dict[str, tuple[Question, list[str], list[Encoded]]] = {}
        for key, (candidate, number) in asked.items():
            question = self.question(candidate)
            _, keys, examples = groups.setdefault(candidate.digest, (question, [], []))
            keys.append(key)
            examples.append(question.encode(self._task, self.rows[number]))
        return list(groups.values())

    def about(self, candidate: Candidate) -> str:
        """What a candidate's answers depend on beside the row: model, settings and prompt, by content. Calibration comes after."""
        if candidate.digest not in self._abouts:
            prompt = candidate.prompt(self._task, self.by_id).model_dump_json()
            self._abouts[candidate.digest] = hashlib.sha256("\n".join([self._base, prompt, *self._labels]).encode()).hexdigest()
        return self._abouts[candidate.digest]

    def _key(self, candidate: Candidate, number: int) -> str:
        row = self.rows[number]
        about = "\n".join([self.about(candidate), row["_id"], str(row[self._task.data.target])])
        return hashlib.sha256(about.encode()).hexdigest()[:32]


def fits(judge: Judge, candidate: Candidate) -> str | None:
    """Why a candidate cannot be asked; None if it can."""
    try:
        question = judge.question(candidate)
    except PromptmillError as error:
        return f"{error.what}"
    if special := next((mark for mark in question.encoding.special_texts if mark in candidate.wording), None):
        return f"holds {special}, which the model reads as a mark of its own"
    words = [word for _, word in candidate.words]
    return "two labels have the same words" if len(set(words)) < len(words) else None


def _log_softmax(scores: Values) -> Values:
    shifted = scores - scores.max(1, keepdims=True)
    result: Values = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return result
