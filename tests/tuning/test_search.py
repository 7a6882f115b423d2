"""The search over settings: what is better is found, cheaply, reproducibly, and through interruptions; test rows stay unseen."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from helpers import a_task, examples

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.data import prepare
from prompt_core.errors import PromptmillError
from prompt_core.task import TaskSpec
from prompt_core.trials import SearchRecord, Trial
from prompt_core.tuning import SearchStep, tune, tune_fleet, tune_multitask
from prompt_core.tuning.folds import folds_of, join_sides, not_held_out

WORDS = ["parcel", "letter", "invoice", "driver", "door", "street", "label", "scanner", "depot", "truck"]
TRAIN = examples(*[(f"The {word} is {'late' if i % 2 else 'broken'}", "late" if i % 2 else "broken") for i, word in enumerate(WORDS)])
VALIDATION = examples(("My box is late", "late"), ("My box is broken", "broken"))
ALL = join_sides((TRAIN, VALIDATION))
ROOTED = "Sort this complaint: {{ text }}\nKind:"
RATES = {"low": 1e-5, "high": 0.1, "log": True}
SPACE = {"tune.steps": [2, 4, 8], "tune.learning_rate": RATES}


def a_search(backbone: Backbone, space: dict[str, Any] = SPACE, prompt: Any = None, tune: Any = None, **search: Any) -> TaskSpec:
    """Two waves of four trials with two folds on up to eight steps, changed by keywords of `tune.search`."""
    spec = {"trials": 8, "together": 4, "folds": 2, "space": space, **search}
    template = ROOTED if backbone.generates else "{{ text }}"
    settings = {"batch_examples": 4, "checkpoint_every": 3, **(tune or {}), "search": spec}
    return a_task(backbone.identity.name, template=template, prompt=prompt or {"kind": "soft"}, tune=settings)


def found_by(task: TaskSpec, backbone: Backbone, **options: Any) -> tuple[TunedPrompt, SearchRecord]:
    prompt = tune(task, TRAIN, VALIDATION, backbone, **options)
    assert prompt.manifest.search is not None
    return prompt, prompt.manifest.search


def test_a_rate_that_learns_is_chosen_over_one_that_does_not(llama: Backbone) -> None:
    task = a_search(llama, {"tune.steps": [4, 16], "tune.learning_rate": [1e-6, 0.03]}, tune={"learning_rate": 1e-6}, trials=2)
    prompt, search = found_by(task, llama)
    assert search.settings["tune.learning_rate"] == 0.03 == prompt.task.tune.learning_rate
    assert prompt.task.search is None and prompt.task.tune.steps == search.settings["tune.steps"] == prompt.manifest.tuning.steps
    scores = {trial.settings["tune.learning_rate"]: trial.rungs[0].score for trial in search.trials}
    assert scores[0.03] < scores[1e-6]


def test_halving_drops_the_worst_and_costs_what_it_says(llama: Backbone) -> None:
    steps: list[SearchStep] = []
    _, search = found_by(a_search(llama, trials=4), llama, on_search=steps.append)
    rungs = sorted(len(trial.rungs) for trial in search.trials)
    assert rungs == [1, 1, 2, 3] and [trial.outcome for trial in search.trials].count("complete") == 1
    for rung in range(2):
        there = [trial for trial in search.trials if len(trial.rungs) > rung]
        left = [trial.rungs[rung].score for trial in there if len(trial.rungs) == rung + 1]
        assert max(trial.rungs[rung].score for trial in there if len(trial.rungs) > rung + 1) <= min(left)
    assert search.prompt_steps == 2 * (4 * 2 + 2 * 2 + 1 * 4)  # folds x (trials x steps of each rung)
    assert (steps[0].done, steps[-1].done, steps[0].total) == (8, search.prompt_steps, search.prompt_steps)
    assert [step.trials for step in steps] == [4, 4, 2, 2, 1, 1, 1, 1]
    assert (search.rows, search.ended) == (12, "trials") and search.tokens > search.prompt_steps


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_the_same_seed_gives_the_same_digest_whatever_the_order_of_the_rows(kind: str, request: pytest.FixtureRequest) -> None:
    backbone: Backbone = request.getfixturevalue(kind)
    task = a_search(backbone, prompt={"kind": "auto"})
    one = tune(task, TRAIN, VALIDATION, backbone)
    shuffled = ALL.sample(fraction=1.0, seed=5, shuffle=True)
    other = tune(task, shuffled[:7], shuffled[7:], backbone)
    assert one.digest == other.digest
    reseeded = a_search(backbone, prompt={"kind": "auto"}, tune={"seed": 1})
    assert tune(reseeded, TRAIN, VALIDATION, backbone).manifest.search != one.manifest.search


@pytest.mark.parametrize("final", ["refit", "average"])
def test_the_final_tuning_is_a_plain_one_with_the_settings_chosen(llama: Backbone, final: str) -> None:
    prompt, _ = found_by(a_search(llama, final=final), llama)
    if final == "refit":
        plain = tune(prompt.task, ALL, None, llama)
        assert all(torch.equal(plain.tensors[name], tensor) for name, tensor in prompt.tensors.items())
        assert plain.manifest.model_copy(update={"search": prompt.manifest.search}) == prompt.manifest
        return
    folds = [not_held_out(held_out, len(ALL)) for held_out in folds_of(ALL, prompt.task, 2)]
    parts = [tune(prompt.task, ALL[rows], None, llama).tensors["embeddings"] for rows in folds]
    assert not torch.equal(parts[0], parts[1])
    torch.testing.assert_close(prompt.tensors["embeddings"], (parts[0] + parts[1]) / 2, rtol=0, atol=1e-4)


def test_a_score_is_what_prompts_tuned_without_the_fold_give_on_it(llama: Backbone) -> None:
    prompt, search = found_by(a_search(llama), llama)
    right = 0
    for held_out in folds_of(ALL, prompt.task, 2):
        fold = tune(prompt.task, ALL[not_held_out(held_out, len(ALL))], None, llama)
        found = fold.predict(ALL["text"].gather(held_out).to_list(), llama)
        right += sum(a == b for a, b in zip(found, ALL["label"].gather(held_out), strict=True))
    assert search.best.accuracy == pytest.approx(right / len(ALL))


def test_settings_that_do_not_fit_each_other_fail_alone(llama: Backbone) -> None:
    task = a_search(llama, {**SPACE, "prompt.start": [None, "zero"]}, trials=6)
    _, search = found_by(task, llama)
    failed = [trial for trial in search.trials if trial.settings["prompt.start"] == "zero"]
    assert failed and all(trial.outcome == "failed" and "start: zero is for kind: deep" in (trial.reason or "") for trial in failed)
    assert search.settings["prompt.start"] is None and "start: zero is for kind: deep" in search.markdown()


def test_a_trial_whose_loss_is_not_finite_fails_alone(bert: Backbone) -> None:
    task = a_search(bert, {**SPACE, "tune.anchor_scale": [10.0, 1e39]}, prompt={"tokens": 2}, trials=6)
    _, search = found_by(task, bert)
    failed = [trial for trial in search.trials if trial.outcome == "failed"]
    assert failed == [trial for trial in search.trials if trial.settings["tune.anchor_scale"] == 1e39] != []
    assert all("also after 3 returns to the last good state" in (trial.reason or "") and not trial.rungs for trial in failed)


def test_where_every_trial_fails_there_is_one_line(llama: Backbone) -> None:
    with pytest.raises(PromptmillError, match=r"task t: tune.search: none of 8 trials could be measured; the first: task t: prompt: start"):
        found_by(a_search(llama, {**SPACE, "prompt.start": ["zero"]}), llama)


def test_a_space_in_which_everything_was_tried_ends_the_search(llama: Backbone) -> None:
    _, search = found_by(a_search(llama, {"tune.steps": [2], "tune.label_score": ["mean", "sum"]}), llama)
    assert (search.ended, len(search.trials)) == ("space", 2)


def test_the_time_ends_a_search_with_what_it_has(llama: Backbone) -> None:
    prompt, search = found_by(a_search(llama, minutes=1e-6), llama)
    assert search.ended == "time" and len(search.trials) == 4 and {trial.outcome for trial in search.trials} == {"dropped", "stopped"}
    assert all(len(trial.rungs) == 1 for trial in search.trials) and prompt.manifest.tuning.steps == 2
    assert search.best.score == min(trial.rungs[0].score for trial in search.trials)


def test_generation_is_scored_by_its_loss_per_token(llama: Backbone) -> None:
    task = a_search(llama).model_copy(update={"objective": "generate"})
    _, search = found_by(task, llama)
    assert search.score == "loss per target token" and search.best.accuracy is None


def test_only_train_and_validation_rows_of_a_file_are_used(tmp_path: Path, llama: Backbone) -> None:
    pl.DataFrame(
        {"text": [f"The {word} is {end}" for word in WORDS for end in ("late", "broken")], "label": ["late", "broken"] * 10}
    ).write_csv(tmp_path / "examples.csv")
    task = a_search(llama, trials=2, together=2)
    task._folder = tmp_path
    splits, _ = prepare(task)
    prompt = tune(task, backbone=llama)
    assert prompt.manifest.search and prompt.manifest.search.rows == len(splits.train) + len(splits.validation)
    assert prompt.digest == tune(task, splits.train, splits.validation, llama).digest


def test_tasks_with_and_without_a_search_share_a_fleet(llama: Backbone) -> None:
    plain = a_task(llama.identity.name, template=ROOTED, prompt={"kind": "soft"}, tune={"steps": 3})
    averaged = a_search(llama, trials=2, together=2, final="average")
    bad = a_search(llama, folds=20)
    tasks = [plain, a_search(llama, trials=2, together=2), averaged, bad]
    one, two, three, four = tune_fleet(tasks, [(TRAIN, VALIDATION)] * 4, llama)
    assert isinstance(one, TunedPrompt) and isinstance(two, TunedPrompt) and isinstance(three, TunedPrompt)
    assert one.manifest.search is None and two.manifest.search and three.manifest.search
    assert three.digest == tune(averaged, TRAIN, VALIDATION, llama).digest
    assert isinstance(four, PromptmillError) and "tune.search.folds: 20, but there are 12 examples" in str(four)


def test_several_tasks_with_one_prompt_are_not_searched(llama: Backbone) -> None:
    with pytest.raises(PromptmillError, match=r"task t: tune.search: asks for a search"):
        tune_multitask([a_search(llama)], [(TRAIN, VALIDATION)], llama)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(("after", "left"), [(1, 8), (3, 5), (4, 5), (8, 2), (9, 0), (12, 0), (16, 0)])
@pytest.mark.parametrize("final", ["refit", "average"])
def test_an_interrupted_search_goes_on_to_the_same_digest(tmp_path: Path, llama: Backbone, after: int, left: int, final: str) -> None:
    seen: list[SearchStep] = []

    def stop(step: SearchStep) -> None:
        seen.append(step)
        if len(seen) == after:
            raise Interrupted

    task = a_search(llama, final=final)
    with pytest.raises(Interrupted):
        tune(task, TRAIN, VALIDATION, llama, on_search=stop, checkpoints=tmp_path)
    again: list[SearchStep] = []
    resumed = tune(task, TRAIN, VALIDATION, llama, on_search=again.append, checkpoints=tmp_path)
    assert resumed.digest == tune(task, TRAIN, VALIDATION, llama).digest
    assert [step.wave for step in again].count(1) == left  # of the first wave's 8 steps; there is a checkpoint after every third
    assert list(tmp_path.iterdir()) == []


def test_a_search_whose_diary_is_lost_or_damaged_starts_anew(tmp_path: Path, llama: Backbone, caplog: pytest.LogCaptureFixture) -> None:
    def stop(step: SearchStep) -> None:
        if step.wave == 2:
            raise Interrupted

    expected = tune(a_search(llama), TRAIN, VALIDATION, llama).digest
    for damage in (Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:50])):
        with pytest.raises(Interrupted):
            tune(a_search(llama), TRAIN, VALIDATION, llama, on_search=stop, checkpoints=tmp_path)
        (diary,) = tmp_path.glob("*.json")
        damage(diary)
        assert tune(a_search(llama), TRAIN, VALIDATION, llama, checkpoints=tmp_path).digest == expected
    assert "cannot be read" in caplog.text and "It starts anew." in caplog.text


@pytest.mark.slow
def test_a_process_that_is_killed_in_its_search_is_resumed_to_the_same_digest(tmp_path: Path, llama_folder: Path) -> None:
    moments = int(os.environ.get("PROMPTMILL_KILLS", "4"))
    command = [sys.executable, str(Path(__file__).with_name("killed.py")), str(llama_folder), str(tmp_path), str(moments), "search"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{moments} of {moments} resumed to the same digest" in done.stdout


@pytest.mark.slow
def test_two_processes_search_as_one(tmp_path: Path, llama: Backbone, llama_folder: Path) -> None:
    script = tmp_path / "parallel.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            import torch
            from helpers import backbone_at
            from test_search import TRAIN, VALIDATION, a_search
            from prompt_core.tuning import tune
            from prompt_core.tuning.parallel import process_group

            torch.set_num_threads(1)
            with process_group() as writes:
                backbone = backbone_at(sys.argv[1])
                prompt = tune(a_search(backbone, minutes=100), TRAIN, VALIDATION, backbone)
                if writes:
                    print(prompt.manifest.search.model_dump_json())
            """
        )
    )
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), str(llama_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    shared = SearchRecord.model_validate_json(done.stdout.splitlines()[-1])
    _, alone = found_by(a_search(llama, minutes=100), llama)
    assert [trial.settings for trial in shared.trials[:4]] == [trial.settings for trial in alone.trials[:4]]
    for one, other in zip(shared.trials[:4], alone.trials[:4], strict=True):
        assert one.rungs[0].score == pytest.approx(other.rungs[0].score, rel=1e-3)
    assert shared.prompt_steps == alone.prompt_steps


def test_the_record_is_a_table_for_people(llama: Backbone) -> None:
    _, search = found_by(a_search(llama, trials=4), llama)
    lines = search.markdown().splitlines()
    assert lines[0] == "| trial | `tune.learning_rate` | steps | log loss | accuracy | outcome |" and len(lines) == 6
    assert "**chosen**" in lines[2] and f"| {search.settings['tune.learning_rate']:g} |" in lines[2]
    assert search.summary().startswith(f"learning_rate {search.settings['tune.learning_rate']:g}, steps {search.best.steps} (log loss 0.")
    assert Trial(settings={}, outcome="failed").best is None
