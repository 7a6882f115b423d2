"""What the rungs of a ladder write for held-out rows, where texts are asked for: the task's own metric, with its standard error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import torch

from prompt_core.backbone import Backbone
from prompt_core.encoding import TaskEncoding
from prompt_core.evaluation.evaluate import asked_once
from prompt_core.evaluation.metrics import Pooled
from prompt_core.evaluation.written import worth_of
from prompt_core.prediction import generate_texts
from prompt_core.prompts import PromptState, lower
from prompt_core.task import TaskSpec
from prompt_core.tuning.candidate import Candidate
from prompt_core.tuning.search import Written

_ROWS = 256  # at most, over all folds: they tell two rungs apart whose metrics differ by some six points


class Finals:
    """Writes with the prompts of a rung, one per fold, and measures the task's gate metric.

    Args:
        task: that writes texts.
        rows: all rows.
        folds: of each fold the numbers of the rows that it holds out.
        backbone: the frozen model.
        max_new_tokens: where a text ends at the latest.
    """

    def __init__(self, task: TaskSpec, rows: pl.DataFrame, folds: Sequence[Sequence[int]], backbone: Backbone, max_new_tokens: int) -> None:
        self._task, self._backbone, self._longest = task, backbone, max_new_tokens
        most = -(-_ROWS // len(folds))
        asked = [asked_once(task, rows[list(held_out)]) for held_out in folds]
        self._folds = [frame.head(most) for frame, _ in asked]
        self._rows = list(pl.concat(self._folds).iter_rows(named=True))
        self._alike = {row: texts for _, own in asked for row, texts in (own or {}).items()}

    def of_trial(self, candidate: Candidate) -> Written:
        """What a trial's prompts write as they stand."""
        with torch.no_grad():
            states = [member.parts[0].prompt.state() for member in candidate.members]
        return self.of(list(zip(states, candidate.encodings, strict=True)))

    def of(self, prompts: Sequence[tuple[PromptState, TaskEncoding]]) -> Written:
        """What prompts write, of each fold one and how it reads inputs."""
        texts, tokens = [], 0
        for (state, encoding), frame in zip(prompts, self._folds, strict=True):
            inputs = [encoding.encode(row) for row in frame.iter_rows(named=True)]
            beams = self._task.evaluate.beams
            with torch.no_grad():
                texts += generate_texts(self._backbone, encoding, lower(self._backbone, state), inputs, self._longest, beams=beams)
            tokens += sum(len(example.input) + beams * self._longest for example in inputs)
        found = worth_of(self._task, self._rows, texts, self._alike or None)
        return Written(found.reported, standard_error(found), tokens)


def standard_error(metric: Pooled) -> float:
    """Of a metric over independent rows, by the jackknife (Efron and Stein 1981), in points; of a mean it is s / sqrt(n)."""
    rows = len(metric.rows)
    if rows < 2:
        return 0.0
    without = metric.value(metric.rows.sum(axis=0) - metric.rows)
    return float(np.sqrt((rows - 1) / rows * np.square(without - without.mean()).sum()))
