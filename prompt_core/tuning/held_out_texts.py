"""What prompts of different kinds write for held-out rows, where texts are asked for: the task's own metric, with its standard error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from prompt_core.backbone import Backbone
from prompt_core.encoding import TaskEncoding
from prompt_core.evaluation.metrics import Pooled
from prompt_core.evaluation.wanted import asked_once
from prompt_core.evaluation.written import worth_of
from prompt_core.generation import generate_texts
from prompt_core.prompts import PromptState
from prompt_core.task import TaskSpec
from prompt_core.trials import Measured
from prompt_core.tuning.candidate import Candidate

_ROWS = 256  # at most, over all folds: they tell two prompts apart whose metrics differ by some six points


@dataclass(frozen=True)
class Written:
    """What prompts wrote for held-out examples.

    Attributes:
        metric, error: the task's gate metric in points, and its standard error.
        tokens: read and written.
    """

    metric: float
    error: float
    tokens: int

    def beside(self, measured: Measured) -> Measured:
        """The same measurement with what was written."""
        return measured.model_copy(update={"metric": round(self.metric, 4), "error": round(self.error, 4)})


class HeldOutTexts:
    """What the prompts of a trial write for the rows that their folds hold out, measured by the task's gate metric.

    Args:
        task: that writes texts, for rows that have targets.
        rows: all rows.
        folds: of each fold the numbers of the rows that it holds out.
        backbone: the frozen model.
    """

    def __init__(self, task: TaskSpec, rows: pl.DataFrame, folds: Sequence[Sequence[int]], backbone: Backbone) -> None:
        self._task, self._backbone = task, backbone
        most = -(-_ROWS // len(folds))
        asked = [asked_once(task, rows[list(held_out)]) for held_out in folds]
        self._folds = [frame.head(most) for frame, _ in asked]
        self._rows = list(pl.concat(self._folds).iter_rows(named=True))
        self._alike = {row: texts for _, own in asked for row, texts in (own or {}).items()}

    def of_trial(self, candidate: Candidate) -> Written:
        """What a trial's prompts write as they stand."""
        parts = [member.parts[0] for member in candidate.members]
        longest = self._task.longest_answer(len(example.target) for part in parts for example in part.train)
        with torch.no_grad():
            states = [part.prompt.state() for part in parts]
        return self.of(list(zip(states, candidate.encodings, strict=True)), longest)

    def of(self, prompts: Sequence[tuple[PromptState, TaskEncoding]], max_new_tokens: int) -> Written:
        """What prompts write, of each fold one and how it reads inputs; `max_new_tokens` is where a text ends at the latest."""
        texts, tokens, beams = [], 0, self._task.evaluate.beams
        for (state, encoding), frame in zip(prompts, self._folds, strict=True):
            inputs = [encoding.encode(row) for row in frame.iter_rows(named=True)]
            with torch.no_grad():
                texts += generate_texts(self._backbone, encoding, state, inputs, max_new_tokens, beams=beams)
            tokens += sum(len(example.input) + beams * max_new_tokens for example in inputs)
        found = worth_of(self._task, self._rows, texts, self._alike or None)
        return Written(found.reported, standard_error(found), tokens)


def standard_error(metric: Pooled) -> float:
    """Of a metric over independent rows, by the jackknife (Efron and Stein 1981), in points; of a mean it is s / sqrt(n)."""
    rows = len(metric.rows)
    if rows < 2:
        return 0.0
    without = metric.value(metric.rows.sum(axis=0) - metric.rows)
    return float(np.sqrt((rows - 1) / rows * np.square(without - without.mean()).sum()))
