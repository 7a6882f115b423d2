"""Self-training: a classifier labels inputs that nobody labelled, and is tuned again on those that it is sure of too."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.data.packing import pack
from prompt_core.errors import PromptmillError
from prompt_core.manifest import SelfTrainingRecord, SelfTrainingRound, TuningRecord
from prompt_core.prompts import Tree, hidden_states, lower
from prompt_core.tuning.objective import Classification, PooledClassification, embed_texts
from prompt_core.tuning.prepared import Prepared
from prompt_core.tuning.score import held_out_score

_MOST_INPUTS = 10_000  # more than the steps of a round come to
_SURE = 0.8  # share of a label's inputs that are learned from
_NEIGHBOURS = 10
_WIDTH = 0.05  # of the neighbours' weight, in cosine
_GIVEN_AWAY = 0.5  # share of what is said of a row that its neighbours decide
_PASSES = 20  # what is left to change then is a millionth

_Kept = tuple[int, Prepared, TuningRecord]  # the round, and what it gave


class SelfTraining:
    """The rounds of one task.

    In a round the prompt of the round before says how likely each label is for every input. That spreads over a graph
    of neighbours in the space of the prompt's embeddings (`spread`), the likeliest label is taken where it is among the surest of its
    label, and the prompt is tuned from its start on these beside the labelled examples. Labels by the model itself are pseudo-labels (Lee
    2013); spreading them before they are learned from is Iscen et al. 2019 (arXiv:1904.04717).

    Args:
        ready: the task at its start, not yet tuned.
        backbone: its frozen model.

    Raises:
        PromptmillError: every input of `data.unlabelled` may be a test row, or has a label.
    """

    def __init__(self, ready: Prepared, backbone: Backbone) -> None:
        self._start, self._backbone, self._budget = ready.twin(), backbone, ready.task.tune.batch_tokens
        self._inputs = ready.unlabelled(_MOST_INPUTS)
        self._rounds: list[SelfTrainingRound] = []
        self._right: list[int] = []
        self._said: Tensor | None = None
        self._kept: _Kept | None = None

    def after(self, tuned: Prepared, record: TuningRecord | PromptmillError) -> Prepared | TunedPrompt | PromptmillError:
        """What follows a tuning that ended so.

        Returns:
            The task at its start, with what the prompt says of the inputs as further examples. After the last round, or one that
            failed, of all rounds the prompt that gets most validation rows right, the last of equals; the error where the first failed.
        """
        if isinstance(record, PromptmillError):
            kept = self._kept
            if kept is None:
                return record
        else:
            kept = self._kept = self._better(tuned, record)
            if len(self._rounds) < self._start.task.tune.self_training:
                return self._following(tuned)
        number, ready, own_record = kept
        ready.found["self_training"] = self._record(number)
        return ready.artifact(own_record)

    def _better(self, tuned: Prepared, record: TuningRecord) -> _Kept:
        part, most = tuned.part, max(self._right, default=0)
        if part.validation:
            fold = (part.prompt.state(), part.objective, part.validation)
            _, accuracy = held_out_score(self._backbone, [fold], self._budget)
            assert accuracy is not None  # it classifies
            self._right.append(round(accuracy * len(part.validation)))
        best = not self._right or self._right[-1] >= most
        return (len(self._rounds), tuned, record) if best or self._kept is None else self._kept

    def _following(self, tuned: Prepared) -> Prepared:
        chances = self._chances(tuned)
        said, sure = chances.argmax(-1), surest(chances)
        changed = None if self._said is None else round(float((said != self._said).double().mean()), 6)
        self._said = said
        self._rounds.append(SelfTrainingRound(inputs=len(said), labelled=len(sure), changed=changed))
        following = self._start.twin()
        following.lessons = [dataclasses.replace(self._inputs[number], target=(int(said[number]),)) for number in sure]
        following.found["self_training"] = self._record(0)  # so that its checkpoint is its own
        return following

    def _record(self, kept: int) -> SelfTrainingRecord:
        return SelfTrainingRecord(rounds=tuple(self._rounds), kept=kept, right=tuple(self._right))

    @torch.no_grad()
    def _chances(self, tuned: Prepared) -> Tensor:
        """Of each label for every input, float32 [inputs, labels]."""
        labelled = self._start.part.train
        classifier, prompt = tuned.part.objective, lower(self._backbone, tuned.part.prompt.state())
        assert isinstance(classifier, Classification)  # a task that asks for self-training classifies
        scores, embeddings = [], []
        for batch in pack([*labelled, *self._inputs], classifier.scoring_tokens, self._budget):
            (states,) = hidden_states(self._backbone, [Tree(prompt, *classifier.scoring_segments(batch))])
            scores.append(classifier.final_scores(states, batch).float().cpu())
            if isinstance(classifier, PooledClassification):
                embeddings.append(classifier.outputs(states, batch).cpu())
            else:  # its states are those of the labels too
                embeddings.append(embed_texts(self._backbone, prompt, [example.input for example in batch]).cpu())
        given = F.one_hot(torch.tensor([example.target[0] for example in labelled]), len(self._start.labels))
        said = torch.cat([given.float(), torch.cat(scores)[len(labelled) :].softmax(-1)])
        return spread(torch.cat(embeddings), said)[len(labelled) :]


def spread(embeddings: Tensor, said: Tensor) -> Tensor:
    """What is said of each row and of its neighbours: learning with local and global consistency (Zhou et al. 2004, NeurIPS 16).

    The graph joins each row with its ten nearest, the nearer the stronger, and neighbours decide half of what comes out.
    They know what the classifier does not: which inputs are of one kind.

    Args:
        embeddings: of unit length, float32 [n, H], n >= 2.
        said: chances of each label, float32 [n, labels].

    Returns:
        Chances, float32 [n, labels]; rows sum to 1.
    """
    from scipy.sparse import csr_array, diags_array
    from sklearn.neighbors import kneighbors_graph  # slow to load

    graph = csr_array(kneighbors_graph(embeddings.numpy(), min(_NEIGHBOURS, len(embeddings) - 1), mode="distance"))
    graph.data = np.exp(-np.square(graph.data) / (2 * _WIDTH))  # the square of a distance is twice what the cosine lacks of 1
    graph = (graph + graph.T) / 2
    scale = diags_array(1 / np.sqrt(graph.sum(1)))
    graph, start = scale @ graph @ scale, said.double().numpy()
    found = start
    for _ in range(_PASSES):
        found = _GIVEN_AWAY * (graph @ found) + (1 - _GIVEN_AWAY) * start
    return torch.from_numpy(found / found.sum(1, keepdims=True)).float()


def surest(chances: Tensor) -> list[int]:
    """The rows to learn from, in order: of those with one likeliest label the four fifths whose label is likeliest.

    Label by label, since a classifier is surer of one than of another: a common threshold would leave the difficult ones out.

    Args:
        chances: [n, labels].
    """
    sure, said = chances.max(-1)
    found: list[int] = []
    for label in range(chances.shape[1]):
        own = (said == label).nonzero().flatten()
        order = sure[own].argsort(descending=True, stable=True)
        found += own[order[: math.ceil(_SURE * len(own))]].tolist()
    return sorted(found)
