"""Where a task writes, what the rungs of a ladder write for rows that they have not seen decides between them."""

from __future__ import annotations

from pathlib import Path

import pytest
from climbed import ladder_task
from helpers import examples

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.evaluation.metrics import score
from prompt_core.ladder.texts import as_text_task
from prompt_core.task import TaskSpec
from prompt_core.task_file import parse_task
from prompt_core.trials import preferred
from prompt_core.tuning import SearchStep, tune
from prompt_core.tuning.folds import folds_of, join_sides, not_held_out
from prompt_core.tuning.starts import Starts

ALL = join_sides((examples(*[(f"Where is parcel {i}?", f"In depot {i % 3}") for i in range(9)]), None))


@pytest.fixture(scope="module")
def task(llama: Backbone) -> TaskSpec:
    assert llama.origin
    return ladder_task(llama.origin, objective="generate", evaluate={"metrics": ["chrf"], "max_new_tokens": 6})


@pytest.fixture(scope="module")
def climbed(task: TaskSpec, llama: Backbone) -> TunedPrompt:
    return tune(task, ALL, None, llama)


def test_each_rung_is_measured_by_what_it_writes_for_rows_that_it_has_not_seen(
    task: TaskSpec, climbed: TunedPrompt, llama: Backbone, tmp_path: Path
) -> None:
    ladder, search = climbed.manifest.ladder, climbed.manifest.search
    assert ladder and search and ladder.metric == "chrf"
    text, deep = ladder.rungs[0].best, ladder.rungs[1].best
    assert ladder.rungs[1].name == "text -> deep" and text and deep
    settings = {**search.trials[ladder.rungs[1].trial or 0].settings, "tune.steps": deep.steps}
    rate, steps = settings["tune.learning_rate"], settings["tune.steps"]
    tuning = {"max_tokens": 96, "batch_examples": 4, "learning_rate": rate, "steps": steps, "decay": "constant", "warmup": 1 / deep.steps}
    targets, by_text, by_deep = [], [], []
    for number, held_out in enumerate(folds_of(ALL, task, 2)):
        seen, unseen = ALL[not_held_out(held_out, len(ALL))], ALL[held_out]
        found = tune(as_text_task(task, 1.0), seen, None, llama)
        Starts([held_out], [found], found, 0.0).without_demonstrations().whole.save(tmp_path / str(number))
        started = {"kind": "deep", "start": "prompt", "start_from": str(tmp_path / str(number))}
        alone = parse_task({**task.model_dump(mode="json", exclude={"text"}), "prompt": started, "tune": tuning}, "t.yaml", tmp_path)
        targets += unseen["label"].to_list()
        by_text += found.predict(unseen["text"].to_list(), llama)
        by_deep += tune(alone, seen, None, llama).predict(unseen["text"].to_list(), llama)
    for measured, texts in ((text, by_text), (deep, by_deep)):
        points = score("chrf", texts, targets)
        assert measured.metric == pytest.approx(points.mean(), abs=1e-3)
        assert measured.error == pytest.approx(points.std(ddof=1) / len(points) ** 0.5, abs=1e-3)


def test_a_rung_that_is_taken_is_tuned_as_its_trial_was(llama: Backbone) -> None:
    assert llama.origin
    writes = {"objective": "generate", "evaluate": {"metrics": ["chrf"], "max_new_tokens": 6}}
    prompt = tune(ladder_task(llama.origin, **writes, deploy=["peft"]), ALL, None, llama)  # which runs no text
    ladder, search, tuning = prompt.manifest.ladder, prompt.manifest.search, prompt.manifest.tuning
    assert ladder and search and tuning and ladder.best.best
    assert search.chosen == ladder.best.trial and prompt.task.tune.steps == search.settings["tune.steps"]
    assert prompt.task.tune.learning_rate == search.settings["tune.learning_rate"] and tuning.steps == ladder.best.best.steps


def test_the_rung_that_writes_best_is_taken(climbed: TunedPrompt) -> None:
    ladder, search = climbed.manifest.ladder, climbed.manifest.search
    assert ladder and search and all(rung.best and rung.best.metric is not None for rung in ladder.rungs)
    assert ladder.chosen == preferred([rung.best for rung in ladder.rungs if rung.best])
    for rung in ladder.rungs[1:]:
        assert rung.trial is not None
        asked = search.trials[rung.trial]
        assert rung.best == asked.best and asked.best in asked.rungs
    assert "| rung | loss per target token | chrf |" in ladder.markdown({}) and " ± " in ladder.markdown({})


def test_what_was_written_is_not_written_again_after_an_interruption(
    task: TaskSpec, climbed: TunedPrompt, llama: Backbone, tmp_path: Path
) -> None:
    def stop(step: SearchStep) -> None:
        if step.step == 3:  # the first rung, of two steps, is measured
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(task, ALL, None, llama, on_search=stop, checkpoints=tmp_path)
    (diary,) = tmp_path.glob("*.json")
    assert '"metric"' in diary.read_text()
    # The manifest has the tokens of all that was written: twice were more.
    assert tune(task, ALL, None, llama, checkpoints=tmp_path).digest == climbed.digest
