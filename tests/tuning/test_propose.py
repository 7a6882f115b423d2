"""What a search tries next: from the space that the task file gives or leaves open, never the same twice, by the seed alone."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import a_task

from prompt_core.backbone import Backbone
from prompt_core.space import Range, SearchSpec
from prompt_core.task import TaskSpec
from prompt_core.trials import Measured, Trial
from prompt_core.tuning.propose import propose, rungs_of, space_of

RATES = Range(low=1e-4, high=1e-1, log=True)


def task_with(**tune: Any) -> TaskSpec:
    return a_task(tune=tune)


def tried(*pairs: tuple[float, float]) -> list[Trial]:
    return [Trial(settings={"tune.learning_rate": x}, rungs=(Measured(steps=8, score=y),), outcome="complete") for x, y in pairs]


def test_the_first_trial_is_what_the_task_file_says() -> None:
    found = propose(task_with(learning_rate=0.02), {"tune.learning_rate": RATES, "prompt.tokens": (None, 8)}, [], 4, 4)
    assert found[0] == {"tune.learning_rate": 0.02, "prompt.tokens": None} and len(found) == 4


def test_the_rungs_of_a_ladder_are_tried_first_however_few_there_are_together() -> None:
    space = {"prompt.kind": ("deep", "soft"), "prompt.start": ("prompt", None), "tune.learning_rate": RATES}
    rungs = [("deep", "prompt"), ("soft", "prompt"), ("deep", None)]
    finished: list[Trial] = []
    while len(finished) < 4:
        found = propose(task_with(learning_rate=0.02), space, finished, 2, 2)
        finished += [Trial(settings=settings, outcome="failed", reason="-") for settings in found]
    tried_first = [(trial.settings["prompt.kind"], trial.settings["prompt.start"]) for trial in finished[:3]]
    assert tried_first == rungs and {trial.settings["tune.learning_rate"] for trial in finished[:3]} == {0.02}
    without_soft = propose(task_with(), {**space, "prompt.kind": ("deep",)}, [], 2, 2)
    assert [(settings["prompt.kind"], settings["prompt.start"]) for settings in without_soft] == [("deep", "prompt"), ("deep", None)]


def test_the_same_seed_proposes_the_same_and_another_does_not() -> None:
    one, other, third = (propose(task_with(seed=seed), {"tune.learning_rate": RATES}, tried((1e-2, 0.5)), 4, 4) for seed in (0, 0, 1))
    assert one == other != third


def test_nothing_is_tried_twice_and_a_space_can_come_to_its_end() -> None:
    space = {"tune.label_smoothing": (0.0, 0.1), "tune.label_score": ("mean", "sum")}
    found = propose(task_with(), space, [], 10, 4)
    assert len(found) == len({tuple(settings.items()) for settings in found}) == 4
    done = [Trial(settings=settings, outcome="failed", reason="-") for settings in found]
    assert propose(task_with(), space, done, 10, 4) == []


def test_whole_settings_get_whole_numbers_and_rates_three_digits() -> None:
    space = {"prompt.tokens": Range(low=2, high=64, log=True), "tune.learning_rate": RATES}
    for settings in propose(task_with(), space, [], 20, 20)[1:]:
        tokens, rate = settings["prompt.tokens"], settings["tune.learning_rate"]
        assert isinstance(tokens, int) and 2 <= tokens <= 64
        assert isinstance(rate, float) and rate == float(f"{rate:.3g}") and 1e-4 <= rate <= 1e-1


def test_results_draw_the_sampler_to_what_was_good() -> None:
    # The lower the rate the better: proposals after twenty results lie lower than those before.
    known = tried(*[(10 ** (-4 + 3 * i / 19), i / 19) for i in range(20)])
    after = propose(task_with(), {"tune.learning_rate": RATES}, known, 8, 4)
    rates = sorted(float(settings["tune.learning_rate"] or 0) for settings in after)
    assert rates[len(rates) // 2] < 10**-2.8


def test_what_failed_is_avoided() -> None:
    space = {"prompt.start": ("zero", "random"), "tune.learning_rate": RATES}
    known = [
        Trial(
            settings={"prompt.start": start, "tune.learning_rate": round(0.001 * (i + 1), 4)},
            rungs=() if start == "zero" else (Measured(steps=8, score=0.5),),
            outcome="failed" if start == "zero" else "complete",
        )
        for i in range(12)
        for start in ("zero", "random")
    ]
    found = [settings["prompt.start"] for settings in propose(task_with(), space, known, 10, 4)]
    assert found.count("random") > found.count("zero")


@pytest.mark.parametrize(
    ("tune", "space", "rungs"),
    [
        ({"steps": 80}, {}, [20, 40, 80]),
        ({}, {}, [60, 120, 240]),
        ({"steps": 1}, {}, [1]),
        ({}, {"tune.steps": (30, 10)}, [10, 30]),
        ({}, {"tune.steps": (None, 10)}, [10, 240]),
        ({"steps": 80}, {"tune.steps": (None,)}, [80]),
        ({}, {"tune.steps": Range(low=20, high=160)}, [20, 40, 80, 160]),
        ({}, {"tune.steps": Range(low=20, high=100)}, [20, 40, 80, 100]),
    ],
)
def test_rungs_are_the_steps_of_the_space_or_shares_of_the_files(tune: dict[str, int], space: Any, rungs: list[int]) -> None:
    assert rungs_of(task_with(**tune), space, eta=2, rows=768) == rungs


@pytest.mark.parametrize(("examples", "steps"), [(10, 80), (256, 80), (257, 81), (770, 241), (1650, 500), (10**6, 500)])
def test_steps_that_are_left_out_are_five_rounds_over_the_examples(examples: int, steps: int) -> None:
    assert task_with().tune.steps_for(examples) == steps
    assert task_with(steps=7).tune.steps_for(examples) == 7


def test_of_a_distillation_no_start_is_searched_that_it_cannot_have_and_no_setting_that_it_does_not_read(llama: Backbone) -> None:
    task = a_task(objective="distill", data={"path": "questions.csv"}, distill={"context": "policy.md"})
    found = space_of(task, SearchSpec(), llama, 50)
    assert found.keys() == {"tune.learning_rate", "tune.average", "tune.steps", "prompt.tokens"}


def test_what_the_file_gives_is_not_searched(llama: Backbone, bert: Backbone) -> None:
    open_task = a_task(llama.identity.name, template="Sort: {{ text }}", prompt={"kind": "auto"})
    spec = SearchSpec()
    assert space_of(open_task, spec, llama, 50)["prompt.kind"] == ("deep", "soft")
    assert {"tune.learning_rate", "tune.steps", "prompt.start", "tune.label_score", "tune.loss"} <= space_of(
        open_task, spec, llama, 50
    ).keys()
    several = open_task.model_copy(update={"labels": {"a": ("good", "fine")}})
    assert "tune.loss" not in space_of(several, spec, llama, 50)  # that over the vocabulary learns one way to say a label
    words = {"label_words": {"a": ["good", "fine"]}}
    worded = a_task(llama.identity.name, template="Sort: {{ text }}", prompt={"kind": "auto"}, text=words)
    assert "tune.loss" not in space_of(worded, spec, llama, 50, from_text=True)
    fixed = a_task(llama.identity.name, template="Sort: {{ text }}", prompt={"kind": "soft", "start": "root"}, tune={"steps": 8})
    assert not {"prompt.kind", "prompt.start", "tune.steps"} & space_of(fixed, spec, llama, 50).keys()
    encoder = space_of(open_task, spec, bert, 50)
    assert encoder["prompt.kind"] == ("deep",) and "tune.anchor_scale" in encoder and "tune.label_score" not in encoder
    assert not {"prompt.tokens", "prompt.start"} & space_of(a_task(template="{{ soft(4) }} {{ text }}"), spec, llama, 50).keys()
    given = SearchSpec(space={"tune.learning_rate": RATES})
    assert encoder["tune.steps"] == Range(low=20, high=160)
    assert space_of(open_task, spec, bert, 770)["tune.steps"] == Range(low=60, high=482)
    assert space_of(open_task, given, llama, 50).keys() == {"prompt.kind", "tune.learning_rate"}
