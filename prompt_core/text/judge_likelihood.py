"""`LikelihoodJudge`: candidates for a causal model, scored by the likelihood of the right words in one packed pass over many."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.encoded import Encoded
from prompt_core.encoding import TaskEncoding
from prompt_core.prompts import Tree, hidden_states
from prompt_core.task import TaskSpec
from prompt_core.text.budget import Budget
from prompt_core.text.candidate import Candidate
from prompt_core.text.demonstrations import nearest
from prompt_core.text.journal import Journal
from prompt_core.text.judge import Judge
from prompt_core.text.prompt import Demonstration, TextPrompt
from prompt_core.text.race import Values
from prompt_core.text.score import Question, behind, open_root, score_prompts
from prompt_core.tokens import soft_ids


class LikelihoodJudge(Judge):
    """Scores a candidate on a row by the log-likelihood of what stands for each label, or of the row's target.

    Args:
        task, backbone, rows, labels, journal, budget: as of `Judge`.
        features: unit-length features of the rows, float32 [n, H], by which demonstrations are retrieved. A row is never
            shown to itself.
    """

    def __init__(
        self,
        task: TaskSpec,
        backbone: Backbone,
        rows: Sequence[Mapping[str, Any]],
        labels: Sequence[str],
        journal: Journal,
        budget: Budget,
        features: Tensor,
    ) -> None:
        super().__init__(task, backbone, rows, labels, journal, budget)
        self._base += f"\n{task.tune.label_score}"
        self._pool = list(self.numbers.values())  # as the rows stand in a prompt that retrieves
        self._kinds = [self.rows[number][task.data.target] if labels else "" for number in self._pool]
        self._features, self._pooled = features, features[self._pool]
        self._near: dict[tuple[int, int, bool], list[int]] = {}
        self._prompts: dict[str, TextPrompt] = {}
        self._questions: dict[str, Question] = {}
        self._abouts: dict[str, str] = {}
        self._charged: set[str] = set()

    def question(self, candidate: Candidate) -> Question:
        """The candidate made ready.

        Raises:
            PromptmillError: it does not fit the model's context or the task's fields.
        """
        if candidate.digest not in self._questions:
            prompt = self._prompts[candidate.digest] = candidate.prompt(self._task, self.by_id)
            question = Question.of(self._task, prompt, self._backbone, self._labels)
            for row in self._longest:  # a wording may leave no room for them
                question.encode(self._task, row)
            self._questions[candidate.digest] = question
        return self._questions[candidate.digest]

    @cached_property
    def _longest(self) -> list[Mapping[str, Any]]:
        """The rows with the longest input and the longest answer, in tokens."""
        plain = TaskEncoding(self._task, self._backbone, soft=False)
        columns = [plain.fields] if self._labels else [plain.fields, (self._task.data.target,)]
        return [max(self.rows, key=lambda row: sum(len(plain.encode_bare(str(row[name]))) for name in names)) for names in columns]

    def encoding(self, candidate: Candidate) -> TaskEncoding:
        return self.question(candidate).encoding

    def front(self, candidate: Candidate) -> tuple[int, ...]:
        return self.question(candidate).front

    def tokens(self, candidate: Candidate) -> int:
        """Of demonstrations that are retrieved, the mean over the rows counts."""
        question = self.question(candidate)
        fixed = len(question.root.root) + question.encoding.tokens_behind
        if candidate.retrieval is None:
            return fixed
        own = [len(self.read(candidate, n).input) - len(question.encoding.encode(row).input) for n, row in enumerate(self.rows)]
        return fixed + round(sum(own) / len(own))

    def read(self, candidate: Candidate, number: int, answered: bool = False) -> Encoded:
        """One row's input behind the candidate, with demonstrations of its own where they are retrieved.

        answered: whether the row's text is its target; of a classifier there is none.
        """
        question, row = self.question(candidate), self.rows[number]
        shown = self._shown(candidate, number)
        return question.encode(self._task, row, shown) if answered else question.read(row, shown=shown)

    def each_without_itself(self, candidate: Candidate) -> tuple[tuple[int, ...], dict[str, Encoded]]:
        """The rows that a candidate shows, each behind the others: a root without any, and by the row's id what stands behind that."""
        question, encoding = self.question(candidate), self.encoding(candidate)
        shown = dict(zip(candidate.shown, self._prompts[candidate.digest].demonstrations, strict=False))  # none shown: a pool
        root = open_root(encoding.root, [encoding.root_with_demonstrations([(each.fields, each.answer)]) for each in shown.values()])
        found = {}
        for row in shown:
            others = [each for other, each in shown.items() if other != row]
            example = question.read(self.by_id[row])
            found[row] = replace(example, input=behind(len(root), encoding, others) + example.input)
        return root, found

    def values(self, candidates: Sequence[Candidate], numbers: Sequence[int]) -> list[Values]:
        found = []
        for candidate, scores in zip(candidates, self._scores(candidates, numbers), strict=True):
            values = self._worth(candidate, scores, numbers)
            values[[self.rows[number]["_id"] in candidate.shown for number in numbers]] = np.nan
            found.append(values)
        return found

    def scores(self, candidate: Candidate, numbers: Sequence[int]) -> Values:
        (scores,) = self._scores([candidate], numbers)
        return scores

    def loss(self, candidate: Candidate, first: int, rows: Tensor, numbers: Sequence[int]) -> Tensor:
        question, end = self.question(candidate), first + len(rows)
        ids = question.root.root
        root = replace(question.root, rows=rows, root=(*ids[:first], *soft_ids(len(rows)), *ids[end:]))
        examples = [self.read(candidate, number, answered=True) for number in numbers]
        self.budget.charge(len(root.root) + sum(map(question.tokens, examples)))
        (states,) = hidden_states(self._backbone, [Tree(root, *question.segments(examples))])
        scores = question.scores(self._backbone, states, examples)
        if not self._labels:
            return -scores.mean()
        return F.cross_entropy(scores, torch.tensor(self._right[list(numbers)], device=scores.device))

    def judging(self, candidate: Candidate) -> list[int]:
        return [number for number, row in enumerate(self.rows) if row["_id"] not in candidate.shown]

    def truncated(self, candidate: Candidate) -> int:
        return sum(self.read(candidate, number, answered=True).truncated for number in range(len(self.rows)))

    def about(self, candidate: Candidate) -> str:
        """What a candidate's answers depend on beside the row: model, settings and prompt, by content. Calibration comes after."""
        if candidate.digest not in self._abouts:
            prompt = candidate.prompt(self._task, self.by_id).model_dump_json()
            self._abouts[candidate.digest] = hashlib.sha256("\n".join([self._base, prompt, *self._labels]).encode()).hexdigest()
        return self._abouts[candidate.digest]

    def _shown(self, candidate: Candidate, number: int) -> list[Demonstration]:
        """The demonstrations that a row has of its own."""
        if candidate.retrieval is None:
            return []
        self.question(candidate)
        pool = self._prompts[candidate.digest].demonstrations
        return [pool[place] for place in self._nearest(number, candidate.retrieval.count, candidate.retrieval.balanced)]

    def _nearest(self, number: int, count: int, balanced: bool) -> list[int]:
        """Where the rows nearest to a row stand in the pool; its own text is not among them."""
        asked = number, count, balanced
        if asked not in self._near:
            itself = [place for place, n in enumerate(self._pool) if self.rows[n]["_id"] == self.rows[number]["_id"]]
            self._near[asked] = nearest(self._pooled, self._kinds, self._features[number], count, balanced, itself)
        return self._near[asked]

    def _scores(self, candidates: Sequence[Candidate], numbers: Sequence[int]) -> list[Values]:
        keys = [[self._key(candidate, number) for number in numbers] for candidate in candidates]
        asked = {key: (c, n) for c, own in zip(candidates, keys, strict=True) for n, key in zip(numbers, own, strict=True)}
        asked = {key: pair for key, pair in asked.items() if key not in self._charged}
        if asked:
            self._pay(asked)
        return [np.array([self._journal.get(key) for key in own], dtype=np.float64) for own in keys]

    def _met(self, candidate: Candidate) -> list[int]:
        return [number for number in range(len(self.rows)) if self._key(candidate, number) in self._charged]

    def _pay(self, asked: Mapping[str, tuple[Candidate, int]]) -> None:
        """Book what is asked for the first time, whether it is known from an interrupted search or not, and find out what is not."""
        groups = self._groups(asked)
        self.budget.charge(sum(len(question.root.root) + sum(map(question.tokens, examples)) for question, _, examples in groups))
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
            _, keys, examples = groups.setdefault(candidate.digest, (self.question(candidate), [], []))
            keys.append(key)
            examples.append(self.read(candidate, number, answered=True))
        return list(groups.values())

    def _key(self, candidate: Candidate, number: int) -> str:
        row = self.rows[number]
        about = "\n".join([self.about(candidate), row["_id"], str(row[self._task.data.target])])
        return hashlib.sha256(about.encode()).hexdigest()[:32]
