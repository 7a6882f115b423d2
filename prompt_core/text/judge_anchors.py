"""`AnchorJudge`: candidates for an encoder, scored by the cosine of an input and each label's anchor, from frozen embeddings.

The training texts are embedded once under each wording and every label text once; what else a candidate chooses costs a
product of small matrices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.encoding import TaskEncoding
from prompt_core.prompts import PromptState, Tree, hidden_states
from prompt_core.task import TaskSpec
from prompt_core.text.budget import Budget
from prompt_core.text.candidate import Candidate
from prompt_core.text.index import unit_vectors
from prompt_core.text.journal import Journal
from prompt_core.text.judge import Judge
from prompt_core.text.race import Values
from prompt_core.tokens import soft_ids
from prompt_core.tuning.build import descriptions


class AnchorJudge(Judge):
    """Scores a candidate on a row by cosines with anchors: means of the embeddings of descriptions and exemplars.

    A row that is an exemplar is left out of its label's anchor when it is scored itself, so that none vouches for itself.

    Args:
        task, backbone, rows, labels, journal, budget: as of `Judge`.
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
        super().__init__(task, backbone, rows, labels, journal, budget)
        self._base += f"\n{task.tune.anchor_scale}"
        self._encodings: dict[str, TaskEncoding] = {}
        self._inputs: dict[str, list[tuple[int, ...]]] = {}
        self._embedded: dict[str, Tensor] = {}  # [rows, H] under each template
        self._anchored: dict[str, tuple[Tensor, Tensor]] = {}
        self._abouts: dict[str, str] = {}
        self._charged: set[str] = set()
        self._seen: dict[str, set[int]] = {}
        # In one batch, whichever of them are asked for: the same numbers in every run.
        texts = [text for label in labels for text in (*descriptions(task, label), *task.text.label_words.get(label, ()))]
        plain = TaskEncoding(task, backbone, soft=False, inside=True)
        ids = [plain.encode_text(text) for text in texts]
        budget.charge(sum(map(len, ids)))
        self._described = dict(zip(texts, unit_vectors(backbone, ids, task.tune.batch_tokens), strict=True))

    def encoding(self, candidate: Candidate) -> TaskEncoding:
        template = str(candidate.template(self._task))
        if template not in self._encodings:
            worded = self._task.model_copy(update={"template": candidate.template(self._task)})
            encoding = TaskEncoding(worded, self._backbone, soft=False, inside=True)
            self._inputs[template] = [encoding.encode(row).input for row in self.rows]
            self._encodings[template] = encoding
        return self._encodings[template]

    def front(self, candidate: Candidate) -> tuple[int, ...]:
        return self.encoding(candidate).before

    def tokens(self, candidate: Candidate) -> int:
        """Exemplars cost nothing when an input is read."""
        return len(self.front(candidate)) + self.encoding(candidate).tokens_behind

    def values(self, candidates: Sequence[Candidate], numbers: Sequence[int]) -> list[Values]:
        for candidate in candidates:
            self._charge(candidate)
            self._seen.setdefault(candidate.digest, set()).update(numbers)
        keys = [self._key(candidate, numbers) for candidate in candidates]
        fresh = {
            key: self._worth(candidate, self.scores(candidate, numbers), numbers).tolist()
            for candidate, key in zip(candidates, keys, strict=True)
            if self._journal.get(key) is None
        }
        self._journal.put(fresh)
        return [np.array(self._journal.get(key), dtype=np.float64) for key in keys]

    def scores(self, candidate: Candidate, numbers: Sequence[int]) -> Values:
        places = torch.tensor(list(numbers))
        vectors, (sums, own) = self.vectors(candidate)[places], self._anchors(candidate)
        found = self._against(vectors, sums, own[places], vectors)
        scores: Values = found.double().numpy()
        return scores

    def vectors(self, candidate: Candidate) -> Tensor:
        """Embeddings of all rows under the candidate's template, float32 [rows, H]."""
        self._charge(candidate)
        template = str(candidate.template(self._task))
        if template not in self._embedded:
            self._embedded[template] = unit_vectors(self._backbone, self._inputs[template], self._task.tune.batch_tokens)
        return self._embedded[template]

    def loss(self, candidate: Candidate, first: int, rows: Tensor, numbers: Sequence[int]) -> Tensor:
        """The anchors are those of the task's own template, which is embedded already: near enough to rank exchanges."""
        self.encoding(candidate)
        all_inputs, end = self._inputs[str(candidate.template(self._task))], first + len(rows)
        inputs = [(*all_inputs[n][:first], *soft_ids(len(rows)), *all_inputs[n][end:]) for n in numbers]
        self.budget.charge(sum(map(len, inputs)))
        (states,) = hidden_states(self._backbone, [Tree(PromptState.of(self._backbone, rows=rows), inputs)])
        queries = F.normalize(self._backbone.pool(states, list(map(len, inputs))).float(), dim=-1)
        plain = Candidate("", "as_written", candidate.words, candidate.shown)
        places, device = torch.tensor(list(numbers)), queries.device
        vectors, (sums, own) = self.vectors(plain)[places], self._anchors(plain)
        scores = self._against(queries, sums.to(device), own[places].to(device), vectors.to(device))
        return F.cross_entropy(scores, torch.tensor(self._right[list(numbers)], device=device))

    def truncated(self, candidate: Candidate) -> int:
        encoding = self.encoding(candidate)
        return sum(encoding.encode(row).truncated for row in self.rows)

    def _against(self, queries: Tensor, sums: Tensor, own: Tensor, vectors: Tensor) -> Tensor:
        """Scores [n, labels] of queries [n, H] against anchors in the directions of `sums` [labels, H].

        own: the label that each query is an exemplar of, -1 for none, [n]; what it added to that label's sum is in `vectors`.
        """
        scale = self._task.tune.anchor_scale
        scores = scale * queries @ F.normalize(sums, dim=-1).T
        without = F.normalize(sums[own.clamp(min=0)] - vectors, dim=-1)
        held_out = scale * (queries * without).sum(-1, keepdim=True)
        its_label = own[:, None] == torch.arange(len(sums), device=own.device)
        return torch.where(its_label, held_out, scores)

    def _anchors(self, candidate: Candidate) -> tuple[Tensor, Tensor]:
        """What each label's descriptions and exemplars add up to, float32 [labels, H]; and the label that each row is an exemplar
        of, -1 for none, [rows]."""
        if candidate.digest not in self._anchored:
            said = dict(candidate.words)
            texts = [said.get(label) or descriptions(self._task, label) for label in self._labels]
            sums = torch.stack([torch.stack([self._described[text] for text in own]).sum(0) for own in texts])
            shown = torch.tensor([self.numbers[row] for row in candidate.shown], dtype=torch.int64)
            labels, own = torch.from_numpy(self._right), torch.full((len(self.rows),), -1)
            own[shown] = labels[shown]
            if len(shown):
                sums = sums.index_add(0, labels[shown], self.vectors(candidate)[shown])
            self._anchored[candidate.digest] = sums, own
        return self._anchored[candidate.digest]

    def _charge(self, candidate: Candidate) -> None:
        """Book the rows under a template the first time, whether their values are known from an interrupted search or not."""
        self.encoding(candidate)
        template = str(candidate.template(self._task))
        if template not in self._charged:
            self.budget.charge(sum(map(len, self._inputs[template])))
            self._charged.add(template)

    def _met(self, candidate: Candidate) -> list[int]:
        return sorted(self._seen.get(candidate.digest, ()))

    def _key(self, candidate: Candidate, numbers: Sequence[int]) -> str:
        if candidate.digest not in self._abouts:
            prompt = candidate.prompt(self._task, self.by_id, encoder=True).model_dump_json()
            parts = [self._base, str(candidate.calibrated), prompt, *self._labels]
            self._abouts[candidate.digest] = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        rows = [f"{self.rows[number]['_id']} {self._labels[self._right[number]]}" for number in numbers]
        return hashlib.sha256("\n".join([self._abouts[candidate.digest], *rows]).encode()).hexdigest()[:32]
