"""`Choices`: the categorical parts of a text prompt as a sampler draws them: wording, structure, label words, context, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import optuna
from torch import Tensor

from prompt_core.data.demonstrations import first_rows
from prompt_core.task import TaskSpec
from prompt_core.text.candidate import Candidate, Structure, structures
from prompt_core.text.demonstrations import chosen, exemplars
from prompt_core.text.prompt import EmbeddingModel, Retrieval
from prompt_core.text.spec import Choice

_POOL = 8  # best wordings to choose from
_ORDERS = 8  # draws of demonstrations that are told apart
_COUNTS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Choices:
    """What a trial may choose.

    Args:
        task: `text` says what there is to choose from.
        rows: the training rows; of a text with several targets the first one is shown.
        features: of the rows, unit length, float32 [n, H], for the choice of examples.
        model: that they are from.
        encoder: whether an encoder reads the prompt, which takes examples as exemplars of their labels.

    Attributes:
        structures: those that the template can take.
    """

    def __init__(self, task: TaskSpec, rows: Sequence[Mapping[str, Any]], features: Tensor, model: EmbeddingModel, encoder: bool) -> None:
        self._task, self._spec, self._model, self._encoder = task, task.text, model, encoder
        self.structures = structures(task, encoder)
        numbers = first_rows([str(row["_id"]) for row in rows])
        self._ids, self._features = list(numbers), features[list(numbers.values())]
        self._classifies = task.objective == "classify"
        self._targets = [str(rows[number][task.data.target]) if self._classifies else "" for number in numbers.values()]

    def candidate(self, trial: optuna.Trial, wordings: Sequence[str]) -> Candidate:
        """The candidate of a trial; `wordings` stand in the order of their worth."""
        rank = trial.suggest_int("wording", 0, _POOL - 1)
        words = self._words(trial)
        shown, retrieval = self._exemplars(trial) if self._encoder else self._demonstrations(trial)
        calibrated = self._classifies and bool(trial.suggest_categorical("calibrated", [False, True]))
        structure: Structure = trial.suggest_categorical("structure", list(self.structures))  # type: ignore[assignment]
        wording = wordings[min(rank, len(wordings[:_POOL]) - 1)]
        return Candidate(wording, structure, words, shown, retrieval, calibrated)

    def _words(self, trial: optuna.Trial) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """One of each label's alternatives, or all of them, whose scores are averaged."""
        alternatives = sorted(self._spec.label_words.items())
        several = any(len(own) > 1 for _, own in alternatives)
        if several and trial.suggest_categorical("averaged", [False, True]):
            return tuple(alternatives)
        return tuple((label, (str(trial.suggest_categorical(f"word:{label}", list(own))),)) for label, own in alternatives)

    def with_examples(self, own: Candidate) -> Candidate:
        """The candidate with as many examples as the task admits, by the first way to choose them: what a user tries next."""
        choice, draw = self._spec.choices[0], Random(f"{self._task.tune.seed}/examples")
        if self._encoder:
            return replace(own, shown=exemplars(self._ids, self._targets, self._features, self._spec.exemplars, choice, draw))
        if choice == "retrieved" and self._most:
            return replace(own, retrieval=Retrieval(count=self._most, balanced=self._classifies, model=self._model))
        return replace(own, shown=chosen(self._ids, self._targets, self._features, self._most, choice, draw))

    @property
    def _most(self) -> int:
        """Demonstrations at most."""
        return min(self._spec.demonstrations, len(self._ids) // 2)

    def _demonstrations(self, trial: optuna.Trial) -> tuple[tuple[str, ...], Retrieval | None]:
        count = int(trial.suggest_categorical("demonstrations", [n for n in _COUNTS if n <= self._most]))
        choice, draw = self._choice(trial)
        if not count:
            return (), None
        if choice == "retrieved":
            balanced = self._classifies and bool(trial.suggest_categorical("balanced", [False, True]))
            return (), Retrieval(count=count, balanced=balanced, model=self._model)
        return chosen(self._ids, self._targets, self._features, count, choice, draw), None

    def _exemplars(self, trial: optuna.Trial) -> tuple[tuple[str, ...], None]:
        most = self._spec.exemplars
        each = int(trial.suggest_categorical("exemplars", sorted({*(n for n in _COUNTS if n < most), most})))
        choice, draw = self._choice(trial)
        return exemplars(self._ids, self._targets, self._features, each, choice, draw), None

    def _choice(self, trial: optuna.Trial) -> tuple[Choice, Random]:
        choice: Choice = trial.suggest_categorical("choice", list(self._spec.choices))  # type: ignore[assignment]
        order = trial.suggest_int("order", 0, _ORDERS - 1)
        return choice, Random(f"{self._task.tune.seed}/{order}")
