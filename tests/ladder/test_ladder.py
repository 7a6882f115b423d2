"""From text to soft and deep prompts: every rung is measured honestly, the best is taken, and an interruption costs nothing twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from climbed import ROWS, SPACE, ladder_task
from helpers import examples

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.data import prepare
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError
from prompt_core.ladder.climb import Ladder
from prompt_core.ladder.record import LadderRecord
from prompt_core.ladder.texts import Texts, as_text_task
from prompt_core.prediction import restore
from prompt_core.prompts import lower
from prompt_core.task import TaskSpec
from prompt_core.task_file import parse_task
from prompt_core.text.prompt import Demonstration, TextPrompt
from prompt_core.text.score import Question, score_prompts
from prompt_core.text.search import Round
from prompt_core.tuning import SearchStep, tune
from prompt_core.tuning.folds import folds_of, join_sides, not_held_out
from prompt_core.tuning.prepared import Prepared
from prompt_core.tuning.search import Search
from prompt_core.tuning.starts import Starts

ALL = join_sides((ROWS, None))
TRAIN, VALIDATION = ROWS[:12], ROWS[12:]
# A rate at which gradients only destroy.
WILD = {"tune.steps": [2], "tune.learning_rate": [10.0]}


def task_over(backbone: Backbone, **parts: Any) -> TaskSpec:
    assert backbone.origin
    return ladder_task(backbone.origin, **parts)


@pytest.fixture(scope="module")
def climbed(llama: Backbone) -> TunedPrompt:
    return tune(task_over(llama), ROWS, None, llama)


def ladder_of(prompt: TunedPrompt) -> LadderRecord:
    assert prompt.manifest.ladder
    return prompt.manifest.ladder


def right(found: list[str], rows: pl.DataFrame) -> int:
    return sum(a == b for a, b in zip(found, rows["label"], strict=True))


def test_every_rung_is_measured_and_the_best_one_taken(climbed: TunedPrompt) -> None:
    ladder, search = ladder_of(climbed), climbed.manifest.search
    assert search and {rung.name for rung in ladder.rungs} == {"text", "text -> deep", "text -> soft", "deep"}
    scores = [rung.best.score for rung in ladder.rungs if rung.best]
    assert len(scores) == 4 and scores[ladder.chosen] == min(scores) and ladder.rows == len(ROWS)
    assert sum(rung.tried for rung in ladder.rungs[1:]) == len(search.trials)
    assert sum(rung.prompt_steps for rung in ladder.rungs) == search.prompt_steps
    assert climbed.manifest.kind == ladder.best.kind and climbed.manifest.tokens == ladder.best.tokens
    assert climbed.seconds.keys() == {rung.name for rung in ladder.rungs} and climbed.seconds["text"] > 0
    assert "[" + ladder.best.name in ladder.summary() and ladder.markdown(climbed.seconds).count("**chosen**") == 1


def test_a_rung_is_measured_on_rows_that_its_texts_and_prompts_have_not_seen(llama: Backbone, climbed: TunedPrompt, tmp_path: Path) -> None:
    task, ladder, search = task_over(llama), ladder_of(climbed), climbed.manifest.search
    assert search
    by_text = by_deep = 0
    (deep,) = [rung for rung in ladder.rungs if rung.name == "text -> deep"]
    trial = search.trials[deep.trial or 0]
    for number, held_out in enumerate(folds_of(ALL, task, 2)):
        seen, unseen = ALL[not_held_out(held_out, len(ALL))], ALL[held_out]
        text = tune(as_text_task(task, 1.0), seen, None, llama)
        by_text += right(text.predict(unseen["text"].to_list(), llama), unseen)
        words = Starts([held_out], [text], text, 0.0).without_demonstrations().whole
        words.save(tmp_path / str(number))
        settings = {"learning_rate": trial.settings["tune.learning_rate"], "steps": deep.best.steps if deep.best else 0}
        settings |= {"max_tokens": 96, "batch_examples": 4, "decay": "constant", "warmup": 1 / settings["steps"]}
        started = {"kind": "deep", "start": "prompt", "start_from": str(tmp_path / str(number))}
        alone = parse_task({**task.model_dump(mode="json", exclude={"text"}), "prompt": started, "tune": settings}, "t.yaml", tmp_path)
        tuned = tune(alone, seen, None, llama)
        assert tuned.manifest.started_from == words.digest
        by_deep += right(tuned.predict(unseen["text"].to_list(), llama), unseen)
    assert ladder.rungs[0].best and ladder.rungs[0].best.accuracy == pytest.approx(by_text / len(ROWS))
    assert deep.best and deep.best.accuracy == pytest.approx(by_deep / len(ROWS))


def test_gradients_start_from_the_words_of_a_text_and_learn_from_the_examples_that_it_shows(llama: Backbone, tmp_path: Path) -> None:
    found = Texts(task_over(llama), (TRAIN, VALIDATION), llama, None, None).search().whole
    assert found.manifest.text
    shown = tuple(Demonstration(fields={"text": text}, answer=label) for text, label in ROWS["text", "label"].rows()[:2])
    showing = found.manifest.text.model_copy(update={"demonstrations": shown})
    text = replace(found, manifest=found.manifest.model_copy(update={"text": showing}))
    words = Starts([], [], text, 0.0).without_demonstrations().whole
    assert words.manifest.text == found.manifest.text.model_copy(update={"demonstrations": ()})
    parts = {"prompt": {"kind": "deep", "start": "prompt", "start_from": "-"}, "tune": {"max_tokens": 96}}
    task = parse_task({**task_over(llama).model_dump(mode="json", exclude={"text"}), **parts}, "t.yaml", Path())
    learned = [len(Prepared(task, (ROWS, None), llama, source=each).learned_from(range(len(ROWS)))) for each in (text, words)]
    assert learned[0] < learned[1] == len(ROWS)

    # A search that starts from the text by hand measures no prompt by a row that this shows.
    text.save(tmp_path / "text")
    search = {"trials": 1, "together": 1, "folds": 2, "space": {"tune.steps": [2]}}
    started = {"prompt": {**parts["prompt"], "start_from": str(tmp_path / "text")}, "tune": {"max_tokens": 96, "search": search}}
    searched = tune(parse_task({**task.model_dump(mode="json"), **started}, "t.yaml", Path()), ROWS, None, llama).manifest.search
    assert searched and searched.rows == len(ROWS) - len(shown)


def test_with_validation_rows_one_text_is_searched_without_them(llama: Backbone) -> None:
    rounds: list[Round] = []
    prompt = tune(task_over(llama), TRAIN, VALIDATION, llama, on_round=rounds.append)
    ladder, found = ladder_of(prompt), prompt.manifest.text_search
    assert ladder.held_out == "validation rows" and ladder.rows == len(VALIDATION)
    assert found and found.rows == len(TRAIN) and {shown.task for shown in rounds} == {"t, text"}
    assert prompt.manifest.data.train_rows == len(ROWS)  # what is taken is tuned on all rows
    text = tune(as_text_task(task_over(llama), 1.0), TRAIN, None, llama)
    rung = ladder.rungs[0].best
    accuracy = right(text.predict(VALIDATION["text"].to_list(), llama), VALIDATION) / len(VALIDATION)
    assert rung and rung.accuracy == pytest.approx(accuracy)


def test_the_text_is_taken_where_gradients_only_destroy(llama: Backbone) -> None:
    prompt = tune(task_over(llama, search={"space": WILD}), TRAIN, VALIDATION, llama)
    ladder = ladder_of(prompt)
    assert ladder.best.name == "text" and prompt.manifest.kind == "text" and not prompt.manifest.tuning
    assert prompt.manifest.search and prompt.manifest.text == tune(as_text_task(prompt.task, 1.0), TRAIN, None, llama).manifest.text
    assert prompt.manifest.data.train_rows == len(ROWS) and prompt.render({"text": "It is late"})


def test_every_kind_and_start_has_its_time_in_the_first_wave(llama: Backbone) -> None:
    steps: list[SearchStep] = []
    task = task_over(llama, search={"trials": 8, "eta": 10})
    search = tune(task, TRAIN, VALIDATION, llama, on_search=steps.append).manifest.search
    assert search
    waves = search.trials[:4], search.trials[4:]
    ways = {trial.kind_and_start for trial in waves[0]}
    assert ways == {("deep", "prompt"), ("soft", "prompt"), ("deep", "")}  # of the four trials two are alike
    going_on = [[trial.kind_and_start for trial in wave if len(trial.rungs) == 2] for wave in waves]
    assert set(going_on[0]) == ways and (len(going_on[0]), len(going_on[1])) == (3, 1)
    first = [step for step in steps if step.wave == 1]
    assert [step.trials for step in first] == [4, 4, 3, 3] and first[0].total - 4 * 2 - 2 == first[-1].done == 4 * 2 + 3 * 2


def test_tasks_that_write_are_scored_by_their_loss_per_token(llama: Backbone) -> None:
    pairs = examples(*[(f"Where is parcel {i}?", f"In depot {i % 3}") for i in range(9)])
    task = task_over(llama, objective="generate", evaluate={"metrics": ["chrf"], "max_new_tokens": 6}, search={"space": SPACE})
    prompt = tune(task, pairs[:6], pairs[6:], llama)
    ladder = ladder_of(prompt)
    assert ladder.score == "loss per target token" and all(rung.best and rung.best.accuracy is None for rung in ladder.rungs)
    assert len(prompt.predict(["Where is it?"], llama)) == 1


def test_a_text_that_shows_lines_is_measured_as_it_is_served(llama: Backbone) -> None:
    pairs = examples(*[(f"parcel {i}", f"depot {i % 3}") for i in range(9)])
    task = task_over(llama, objective="generate", template="Where is {{ text }}?\nIn:", evaluate={"max_new_tokens": 6})
    found = Texts(task, (pairs[:6], pairs[6:]), llama, None, None).search().whole
    shown = tuple(Demonstration(fields={"text": text}, answer=label) for text, label in pairs["text", "label"].rows()[:2])
    lines = TextPrompt(template=task.template, demonstrations=shown)
    text = replace(found, manifest=found.manifest.model_copy(update={"text": lines}))
    ladder = Ladder(task, (pairs[:6], pairs[6:]), llama)
    held_out = [number for number, row in enumerate(join_sides((pairs, None))["_id"]) if row in set(pairs["_id"][6:])]
    rung = ladder._text_rung(Starts([held_out], [text], text, 0.0), None).best
    question = Question.of(task, lines, llama, [])
    asked = [question.encode(task, row) for row in pairs[6:].iter_rows(named=True)]
    (likelihoods,) = score_prompts(llama, [question], [asked], 256)
    sizes = torch.tensor([float(len(each.target)) for each in asked])
    assert llama.tokenizer.decode(asked[0].target).endswith("\n\n")  # as behind the examples, and as it is written
    assert rung and rung.score == pytest.approx(float(-(likelihoods[:, 0] * sizes).sum() / sizes.sum()), abs=1e-4)


def test_the_same_seed_gives_the_same_digest_whatever_the_order_of_the_rows(llama: Backbone, climbed: TunedPrompt) -> None:
    shuffled = ROWS.sample(fraction=1.0, seed=5, shuffle=True)
    assert tune(task_over(llama), shuffled, None, llama).digest == climbed.digest


def test_only_train_and_validation_rows_of_a_file_are_used(llama: Backbone, tmp_path: Path) -> None:
    ROWS.drop("_id").write_csv(tmp_path / "examples.csv")
    task = task_over(llama, data={"path": "examples.csv", "target": "label", "validation": 0.3}, search={"space": WILD})
    task._folder = tmp_path
    splits, _ = prepare(task)
    assert len(splits.test) and len(splits.validation)
    assert tune(task, backbone=llama).digest == tune(task, splits.train, splits.validation, llama).digest


@pytest.mark.parametrize("kind", ["deep", "soft"])
def test_a_prompt_that_starts_from_a_text_prompt_says_what_that_says(llama: Backbone, tmp_path: Path, kind: str) -> None:
    words = {"label_words": {"broken": ["damaged"], "late": ["slow"]}, "demonstrations": 4, "rounds": 3, "length_penalty": 0}
    text = tune(as_text_task(task_over(llama, text=words), 1.0), ROWS, None, llama)
    text.save(tmp_path / "text")
    started = {"kind": kind, "start": "prompt", "start_from": "text"}
    plain = {"name": "t", "backbone": task_over(llama).backbone.model_dump(), "objective": "classify", "template": "{{ text }}"}
    data = {"path": "x.csv", "target": "label"}
    task = parse_task({**plain, "data": data, "prompt": started, "tune": {"max_tokens": 96}}, "t.yaml", tmp_path)
    ready = Prepared(task, (ROWS, None), llama)
    expected = lower(llama, restore(text, TaskEncoding(text.worded, llama), llama))
    found = lower(llama, ready.prompt.state())
    torch.testing.assert_close(found.keys, expected.keys, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=1e-5)
    assert ready.task.template == text.worded.template and ready.task.labels == text.worded.labels
    assert ready.tokens == expected.keys.shape[1]


def test_what_the_text_searches_may_spend_is_shared_among_them(llama: Backbone) -> None:
    endpoint = {"url": "http://x/v1", "model": "m", "dollars": 3.0, "dollars_per_million_read": 1.0, "dollars_per_million_written": 0.0}
    both = task_over(llama, text={"max_tokens": 1000, "endpoint": endpoint}, search={"minutes": 10})
    shared = as_text_task(both, 0.4).text
    assert (shared.max_tokens, shared.minutes) == (400, pytest.approx(2.0))  # the texts have half of the minutes
    assert shared.endpoint and shared.endpoint.dollars == pytest.approx(1.2)
    assert as_text_task(task_over(llama, text={"minutes": 4}, search={"minutes": 10}), 0.5).text.minutes == pytest.approx(2.0)


def test_the_time_of_a_text_search_that_was_interrupted_counts(llama: Backbone, tmp_path: Path) -> None:
    def stop(shown: Round) -> None:
        raise KeyboardInterrupt

    parts = task_over(llama), (TRAIN, VALIDATION), llama
    with pytest.raises(KeyboardInterrupt):
        Texts(*parts, stop, tmp_path).search()
    (journal,) = tmp_path.glob("*.jsonl")
    answers = [json.loads(line)[:2] for line in journal.read_text().splitlines()]
    journal.write_text("".join(json.dumps([*answer, 500.0]) + "\n" for answer in answers))
    assert Texts(*parts, None, tmp_path).search().seconds >= 500


def test_where_a_text_cannot_run_it_is_a_start_alone(llama: Backbone) -> None:
    ladder = ladder_of(tune(task_over(llama, deploy=["peft"], search={"space": WILD}), TRAIN, VALIDATION, llama))
    text = ladder.rungs[0].best
    assert ladder.best.kind != "text" and ladder.best.best and text and text.score < ladder.best.best.score
    assert as_text_task(task_over(llama, deploy=["vllm"]), 1.0).deploy == ("vllm",)  # a text that is taken says where it runs


def test_the_time_of_the_texts_counts_for_the_search(llama: Backbone) -> None:
    task = task_over(llama, search={"minutes": 60, "trials": 8})
    starts = Texts(task, (TRAIN, VALIDATION), llama, None, None).search()
    record = Search(task, (TRAIN, VALIDATION), llama, starts=replace(starts, seconds=3601.0)).run()
    assert record.ended == "time" and len(record.trials) == 4 and all(len(trial.rungs) == 1 for trial in record.trials)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"search": {"final": "average"}}, "tune.search.final: average beside the part text; prompts of different texts have no mean"),
        ({"search": {"together": 2}}, "tune.search.trials and together are at least 3 beside the part text, to meet every rung"),
        ({"prompt": {"kind": "auto", "start": "labels"}}, "prompt.start: labels beside the part text"),
        (
            {"search": {"space": {"prompt.start": ["prompt", "demonstrations"]}}},
            "tune.search.space: prompt.start beside the part text; a search chooses between the text found and the root",
        ),
        ({"text": {"minutes": 5}, "search": {"minutes": 5}}, "text.minutes 5 leave nothing of tune.search.minutes 5"),
    ],
)
def test_a_setting_that_does_not_fit_a_ladder_is_one_line(llama: Backbone, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptmillError) as raised:
        task_over(llama, **parts)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_an_encoder_is_refused_by_name(bert: Backbone) -> None:
    with pytest.raises(PromptmillError, match=r"task t: text: climbs from text, but tiny-bert is no causal model. Leave the part text out"):
        tune(task_over(bert, template="{{ text }}"), ROWS, None, bert)


def test_a_label_of_one_example_is_one_line(llama: Backbone) -> None:
    rows = pl.concat([ROWS, examples(("It is odd", "odd"))])
    with pytest.raises(PromptmillError, match=r'task t: data\.target: label "odd" has one example, which some fold holds out\. Add'):
        tune(task_over(llama), rows, None, llama)


def test_without_the_part_text_auto_is_a_search_over_settings(llama: Backbone) -> None:
    task = parse_task(task_over(llama).model_dump(mode="json", exclude={"text"}, exclude_unset=True), "t.yaml", Path())
    prompt = tune(task, ROWS, None, llama)
    assert prompt.manifest.ladder is None and prompt.manifest.text_search is None
    assert b"ladder" not in prompt.manifest.canonical()  # digests are those of before there were ladders


def test_a_ladder_that_is_stopped_in_its_search_searches_no_words_again(llama: Backbone, climbed: TunedPrompt, tmp_path: Path) -> None:
    def stop(step: SearchStep) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(task_over(llama), ROWS, None, llama, on_search=stop, checkpoints=tmp_path)
    rounds: list[Round] = []
    resumed = tune(task_over(llama), ROWS, None, llama, on_round=rounds.append, checkpoints=tmp_path)
    assert resumed.digest == climbed.digest and not rounds
    assert {path.suffix for path in tmp_path.iterdir()} == {".jsonl"}  # scores that a longer search need not pay for again


@pytest.mark.slow
def test_a_ladder_that_is_killed_pays_once_and_comes_to_the_same(llama_folder: Path, tmp_path: Path) -> None:
    script = [sys.executable, str(Path(__file__).with_name("climbed.py")), str(llama_folder)]

    def progress(folder: Path) -> int:
        return sum(1 + path.stat().st_size for path in folder.glob("*") if path.is_file()) + 10_000 * len(list(folder.glob("*-text-*")))

    def keys(folder: Path) -> Counter[tuple[str, str]]:
        return Counter((path.name, json.loads(line)[0]) for path in folder.glob("*.jsonl") for line in path.read_bytes().splitlines())

    digest = subprocess.run([*script, str(tmp_path / "whole")], capture_output=True, text=True, check=True).stdout.strip()
    planned = keys(tmp_path / "whole")
    assert len(digest) == 64 and planned
    folder, reached = tmp_path / "killed", 0
    for _ in range(4):
        going = subprocess.Popen([*script, str(folder)], stdout=subprocess.PIPE, text=True)
        while going.poll() is None and progress(folder) < reached + 20_000:
            time.sleep(0.002)
        going.send_signal(signal.SIGKILL)
        going.wait()
        reached = progress(folder)
    resumed = subprocess.run([*script, str(folder)], capture_output=True, text=True, check=True)
    assert resumed.stdout.strip() == digest
    assert keys(folder) == planned and max(planned.values()) == 1
