"""What a tuned prompt has to beat: the untuned model, asked plainly and with demonstrations, and a linear probe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import polars as pl
import torch
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.data import unlabelled_inputs
from prompt_core.data.demonstrations import fair_draw
from prompt_core.data.packing import pack
from prompt_core.encoded import Encoded
from prompt_core.encoding import TaskEncoding
from prompt_core.evaluation.contender import Contender, Kind
from prompt_core.evaluation.taggers import entity_baselines
from prompt_core.generation import generate_texts
from prompt_core.prediction import best_labels, label_scores
from prompt_core.prompts import PromptState, lower
from prompt_core.room import room_for_input
from prompt_core.task import TaskSpec
from prompt_core.template import are_parted
from prompt_core.tuning.build import answer, build_classifier
from prompt_core.tuning.calibration import mean_log_chances
from prompt_core.tuning.objective import embed_texts

OnContender = Callable[[str, int, int], None]


def baselines(
    task: TaskSpec,
    seen: pl.DataFrame,
    rows: Sequence[Mapping[str, Any]],
    backbone: Backbone,
    max_new_tokens: int | None,
    on_progress: OnContender | None = None,
) -> list[Contender]:
    """Predictions of every baseline that fits the task.

    A model that generates: `zero_shot` (the template as it is) and `few_shot` (with demonstrations from the training rows).
    A causal classifier also: `zero_shot_calibrated` (its label words calibrated on the seen rows and `data.unlabelled`).
    An encoder: `label_names` (nearest label description) and `linear_probe` (logistic regression on frozen features,
    C = 10, the setting that did best in the peers' comparison); one that finds entities: see `entity_baselines`.

    Args:
        seen: the rows that the tuned prompt has seen, train and validation; few-shot and probe may use them all.
        rows: the fields of the test inputs.
        max_new_tokens: as for the tuned prompt; None for classification.
        on_progress: called with (contender, finished rows, all rows).
    """
    encoding = TaskEncoding(task, backbone, soft=False)
    if task.tags:
        return entity_baselines(task, seen, rows, encoding, backbone, on_progress)
    if not backbone.generates:
        return _encoder_baselines(task, seen, [encoding.encode(row) for row in rows], encoding, backbone, on_progress)
    labels = sorted(seen[task.data.target].unique()) if task.objective == "classify" else []
    contenders = []
    for name, (reading, root) in _untuned(task, seen, encoding, backbone).items():
        prompt = PromptState.of(backbone, root=root)
        if task.writes:
            assert max_new_tokens is not None  # recorded by the tuning of every task that writes
            room = room_for_input(backbone, prompt, new_tokens=max_new_tokens)
            inputs = [reading.encode(row, room=room) for row in rows]
            shown, beams = _named(on_progress, name), task.evaluate.beams
            texts = generate_texts(backbone, reading, prompt, inputs, max_new_tokens, shown, beams)
            contenders.append(Contender(name=name, kind="untuned", predictions=texts))
        else:
            tokens = task.tune.batch_tokens
            classifier = build_classifier(task, reading, backbone, labels)
            room = room_for_input(backbone, prompt, classifier)
            inputs = [reading.encode(row, room=room) for row in rows]
            scores = label_scores(backbone, classifier, prompt, inputs, len(labels), tokens, _named(on_progress, name))
            contenders.append(choosing(name, "untuned", scores, labels))
        if task.objective == "classify" and name == "zero_shot":
            rows_seen = chain(seen.iter_rows(named=True), unlabelled_inputs(task).iter_rows(named=True))
            behind = partial(classifier.scores_behind, lower(backbone, prompt))
            bias = mean_log_chances(behind, [encoding.encode(row, room=room) for row in rows_seen], classifier.scoring_tokens, tokens)
            contenders.append(choosing("zero_shot_calibrated", "untuned", scores - bias.cpu(), labels))
    return contenders


def _untuned(
    task: TaskSpec, seen: pl.DataFrame, encoding: TaskEncoding, backbone: Backbone
) -> dict[str, tuple[TaskEncoding, tuple[int, ...]]]:
    """What stands in front of the inputs, and how the answers behind it are written."""
    found = {"zero_shot": (encoding, encoding.root)}
    if task.evaluate.few_shot:
        rows = fair_draw(seen, task.evaluate.few_shot).iter_rows(named=True)
        shown = [(row, answer(task, row[task.data.target])) for row in rows]
        behind = TaskEncoding(task, backbone, soft=False, parted=are_parted([said for _, said in shown]))
        found["few_shot"] = behind, behind.root_with_demonstrations(shown)
    return found


def _encoder_baselines(
    task: TaskSpec,
    seen: pl.DataFrame,
    inputs: Sequence[Encoded],
    encoding: TaskEncoding,
    backbone: Backbone,
    on_progress: OnContender | None,
) -> list[Contender]:
    from sklearn.linear_model import LogisticRegression

    labels = sorted(seen[task.data.target].unique())
    bare = PromptState.of(backbone)
    by_name = build_classifier(task, encoding, backbone, labels)
    named = label_scores(backbone, by_name, bare, inputs, len(labels), task.tune.batch_tokens, _named(on_progress, "label_names"))
    probe = LogisticRegression(C=10, max_iter=1000, random_state=task.tune.seed)
    training = [encoding.encode(row) for row in seen.iter_rows(named=True)]
    probe.fit(_features(backbone, training, task.tune.batch_tokens), seen[task.data.target].to_list())
    probed = torch.from_numpy(probe.predict_log_proba(_features(backbone, inputs, task.tune.batch_tokens)))
    return [choosing("label_names", "untuned", named, labels), choosing("linear_probe", "rival", probed, labels)]


def choosing(name: str, kind: Kind, scores: Tensor, labels: Sequence[str], seconds: float | None = None) -> Contender:
    """A classifier by its scores, [N, labels]: it takes the label with the highest, and is as sure as their softmax says."""
    probabilities = scores.double().softmax(-1).numpy()
    return Contender(name, kind, best_labels(scores, labels), probabilities=probabilities, labels=labels, seconds=seconds)


@torch.inference_mode()
def _features(backbone: Backbone, inputs: Sequence[Encoded], batch_tokens: int) -> list[list[float]]:
    bare = PromptState.of(backbone)
    return [
        row
        for batch in pack(inputs, lambda e: len(e.input), batch_tokens)
        for row in embed_texts(backbone, bare, [e.input for e in batch]).tolist()
    ]


def _named(on_progress: OnContender | None, name: str) -> Callable[[int, int], None] | None:
    return None if on_progress is None else partial(on_progress, name)
