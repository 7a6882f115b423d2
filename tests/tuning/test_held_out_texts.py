"""Where a task writes, what prompts write for rows that they have not seen decides between their kinds and starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_decoders import save_encoder_decoder
from helpers import a_task, backbone_at, examples
from hypothesis import given
from hypothesis import strategies as st

from prompt_core.backbone import Backbone
from prompt_core.evaluation.metrics import from_scores, score
from prompt_core.task import TaskSpec
from prompt_core.trials import Measured, SearchRecord, preferred
from prompt_core.tuning import tune
from prompt_core.tuning.folds import folds_of, join_sides, not_held_out
from prompt_core.tuning.held_out_texts import standard_error

ALL = join_sides((examples(*[(f"Where is parcel {i}?", f"In depot {i % 3}") for i in range(9)]), None))
STEPS_AND_RATE = {"tune.steps": [2, 4], "tune.learning_rate": {"low": 1e-3, "high": 0.1, "log": True}}


def a_search(model: str, prompt: dict[str, Any], space: dict[str, Any]) -> TaskSpec:
    """A wave of six trials and one of two, that write at most six tokens."""
    spec = {"trials": 8, "together": 6, "folds": 2, "space": STEPS_AND_RATE | space}
    evaluate = {"metrics": ["chrf"], "max_new_tokens": 6}
    tuning = {"batch_examples": 4, "search": spec}
    return a_task(model, template="Answer: {{ text }}", objective="generate", prompt=prompt, tune=tuning, evaluate=evaluate)


def tuned(task: TaskSpec, backbone: Backbone) -> tuple[TaskSpec, SearchRecord]:
    prompt = tune(task, ALL, None, backbone)
    assert prompt.manifest.search
    return prompt.task, prompt.manifest.search


@pytest.fixture(scope="module")
def over_kinds(llama: Backbone) -> tuple[TaskSpec, SearchRecord]:
    return tuned(a_search(llama.identity.name, {"kind": "auto"}, {}), llama)


def test_the_settings_chosen_are_those_whose_prompts_write_best(over_kinds: tuple[TaskSpec, SearchRecord], llama: Backbone) -> None:
    task, search = over_kinds
    measured = {number: trial.best for number, trial in enumerate(search.trials) if trial.best}
    assert search.chosen == list(measured)[preferred(list(measured.values()))]
    texts, targets = [], []
    for held_out in folds_of(ALL, task, 2):
        fold = tune(task, ALL[not_held_out(held_out, len(ALL))], None, llama)
        texts += fold.predict(ALL["text"].gather(held_out).to_list(), llama)
        targets += ALL["label"].gather(held_out).to_list()
    points = score("chrf", texts, targets)
    assert search.best.metric == pytest.approx(points.mean(), abs=1e-3)
    assert search.best.error == pytest.approx(points.std(ddof=1) / len(points) ** 0.5, abs=1e-3)
    assert f"| {search.best.metric:.1f} | **chosen** |" in search.markdown().splitlines()[2]


def test_each_kind_goes_on_and_its_likeliest_trial_writes_at_each_step(over_kinds: tuple[TaskSpec, SearchRecord]) -> None:
    first = over_kinds[1].trials[:6]
    for kind in ("deep", "soft"):
        alike = [trial for trial in first if trial.settings["prompt.kind"] == kind]
        for rung in range(2):
            there = [trial for trial in alike if len(trial.rungs) > rung]
            (asked,) = (trial for trial in there if trial.rungs[rung].metric is not None)
            assert asked.rungs[rung].score == min(trial.rungs[rung].score for trial in there)


@pytest.mark.parametrize(
    ("prompt", "space", "writes"),
    [
        ({"kind": "deep"}, {}, False),
        ({"kind": "deep"}, {"prompt.start": [None]}, False),
        ({"kind": "deep"}, {"prompt.start": [None, "random"]}, True),
        ({}, {"prompt.kind": ["deep", "soft"]}, True),
    ],
)
def test_prompts_of_one_kind_and_start_are_told_apart_by_likelihood(
    llama: Backbone, prompt: dict[str, Any], space: dict[str, Any], writes: bool
) -> None:
    _, search = tuned(a_search(llama.identity.name, prompt, space), llama)
    assert any(rung.metric is not None for trial in search.trials for rung in trial.rungs) == writes


def test_an_encoder_decoder_writes_too(tmp_path: Path) -> None:
    backbone = backbone_at(str(save_encoder_decoder("t5", tmp_path / "t5")))
    _, search = tuned(a_search(backbone.identity.name, {"kind": "auto"}, {}), backbone)
    assert search.best.metric is not None


@pytest.mark.parametrize(
    ("measured", "best"),
    [
        ([(0.9, None, None), (0.8, None, None), (0.8, None, None)], 1),
        ([(0.9, 3.1, 3.1), (2.6, 18.8, 7.0)], 1),  # sure and wrong is worse in likelihood than unsure and wrong
        ([(0.9, 15.0, 6.4), (2.6, 18.8, 7.0)], 0),  # no more than the error apart
        ([(0.9, 0.0, 0.0), (0.8, 0.0, 0.0)], 1),  # nothing is right
        ([(0.1, None, None), (0.9, 5.0, 4.0)], 1),  # not asked to write: another one of its kind was likelier
        ([(0.5, 100.0, 0.0), (0.4, 96.9, 3.1)], 0),
    ],
)
def test_the_metric_decides_and_likelihood_between_those_that_write_alike(
    measured: list[tuple[float, float | None, float | None]], best: int
) -> None:
    assert preferred([Measured(steps=1, score=s, metric=m, error=e) for s, m, e in measured]) == best


@given(st.lists(st.floats(0, 100), min_size=2, max_size=20))
def test_the_error_of_a_mean_is_the_textbook_one(points: list[float]) -> None:
    expected = np.std(points, ddof=1) / len(points) ** 0.5
    assert standard_error(from_scores("chrf", np.array(points))) == pytest.approx(expected, abs=1e-9)
