"""The evaluation of a distilled prompt: its contenders, the gate on agreement, and what it says was saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from helpers import a_task, examples

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.data import Splits
from prompt_core.evaluation.distilled import latency
from prompt_core.evaluation.evaluate import evaluate
from prompt_core.task import TaskSpec
from prompt_core.tuning import tune

CHAT = [{"system": "Answer briefly."}, {"user": "{{ text }}"}]
POLICY = "Parcels up to 2 kg cost 49 kroner. Parcels up to 10 kg cost 89 kroner. Drivers wait three minutes and ring once at the door."
TEXTS = examples(*[(f"What does a parcel of {i} kg cost?", f"{i} kroner") for i in range(12)])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def distilled(backbone: Backbone, folder: Path, target: str = "") -> tuple[TaskSpec, TunedPrompt, Splits]:
    (folder / "policy.md").write_text(POLICY, encoding="utf-8")
    data = {"path": "x.csv", **({"target": target} if target else {})}
    task = a_task(
        backbone.identity.name,
        folder=folder,
        objective="distill",
        template=CHAT,
        data=data,
        distill={"context": "policy.md", "answer_tokens": 6, "top_k": 8},
        prompt={"tokens": 16},
        tune={"max_tokens": 64, "steps": 10, "batch_examples": 6},
    )
    frame = TEXTS if target else TEXTS.drop("label")
    splits = Splits(train=frame[:6], validation=frame[6:8], test=frame[8:])
    return task, tune(task, splits.train, splits.validation, backbone), splits


def test_without_labels_the_teacher_is_the_measure_and_the_gate_asks_for_agreement(llama: Backbone, tmp_path: Path) -> None:
    task, prompt, splits = distilled(llama, tmp_path)
    found = evaluate(task, prompt, splits, llama)
    assert [(r.name, r.kind) for r in found.contenders] == [
        ("teacher", "teacher"),
        ("first_tokens", "untuned"),
        ("zero_shot", "untuned"),
        ("tuned", "tuned"),
    ]
    assert found.gate_metric == "agreement"
    assert found.contenders[0].metrics["agreement"].value == 100
    assert len(found.verdict.reasons) == 2  # the two untuned ones; nobody has to beat the teacher
    assert not any("teacher" in reason for reason in found.verdict.reasons)
    saved = found.distilled
    assert saved is not None
    assert saved.tokens_after == 16 < saved.tokens_before
    assert saved.cache_bytes_before / saved.cache_bytes_after == saved.tokens_before / 16
    assert saved.cache_bytes_after == 16 * 2 * llama.num_layers * llama.num_kv_heads * llama.head_dim * 4
    assert saved.divergence["teacher"] < 1e-4 < saved.divergence["tuned"]
    assert f"{saved.tokens_before} tokens became 16" in found.table()
    assert f"{saved.tokens_before} tokens became 16" in found.markdown()
    assert evaluate(task, prompt, splits, llama) == found
    assert type(found).model_validate_json(found.model_dump_json()) == found


def test_a_better_prompt_in_production_must_not_be_replaced_by_a_worse_one(llama: Backbone, tmp_path: Path) -> None:
    task, prompt, splits = distilled(llama, tmp_path)
    other = tune(task.model_copy(update={"tune": task.tune.model_copy(update={"steps": 1})}), splits.train, splits.validation, llama)
    found = evaluate(task, other, splits, llama, production=prompt)
    assert any(
        reason.startswith(("worse than production: agreement", "not shown to be worse than production")) for reason in found.verdict.reasons
    )
    assert found.distilled is not None
    assert found.distilled.divergence["production"] < found.distilled.divergence["tuned"]


def test_with_a_target_column_the_texts_are_measured_too(llama: Backbone, tmp_path: Path) -> None:
    task, prompt, splits = distilled(llama, tmp_path, target="label")
    found = evaluate(task, prompt, splits, llama)
    assert task.metrics == ("agreement", "chrf", "rouge_l")
    assert set(found.tuned.metrics) == {"agreement", "chrf", "rouge_l"}
    assert found.samples[0].target.endswith("kroner")


def test_an_input_with_several_answers_is_asked_once_and_one_without_is_measured_by_the_teachers(llama: Backbone, tmp_path: Path) -> None:
    task, prompt, splits = distilled(llama, tmp_path, target="label")
    more = splits.test[:1].with_columns(label=pl.Series(["much"])), splits.test[:1].with_columns(label=pl.Series([""]))
    rows = pl.concat([*more, splits.test[:3], splits.test[3:].with_columns(label=pl.Series([""]))]).sort("_id", "label")
    found = evaluate(task, prompt, replace(splits, test=rows), llama)
    once = evaluate(task, prompt, splits, llama)
    assert found.rows == 4 == once.rows
    assert found.comparisons["zero_shot"]["agreement"] == once.comparisons["zero_shot"]["agreement"]
    by_input = {sample.input["text"]: sample for sample in found.samples}
    unanswered = by_input[splits.test["text"][3]]
    assert unanswered.target == unanswered.outputs["teacher"]
    assert by_input[splits.test["text"][0]].target in ("0 kroner", "8 kroner", "much")


def test_a_distilled_prompt_predicts_after_it_was_saved(llama: Backbone, tmp_path: Path) -> None:
    _, prompt, splits = distilled(llama, tmp_path)
    prompt.save(tmp_path / "prompt")
    loaded = TunedPrompt.load(tmp_path / "prompt")
    assert loaded.digest == prompt.digest
    assert str(tmp_path) not in (tmp_path / "prompt" / "manifest.json").read_text(encoding="utf-8")
    assert loaded.predict(splits.test["text"].to_list(), llama) == prompt.predict(splits.test["text"].to_list(), llama)


def test_latency_is_measured_with_and_without_reading_the_context(llama: Backbone, tmp_path: Path) -> None:
    task, prompt, splits = distilled(llama, tmp_path)
    seconds = latency(task, prompt, splits, llama, rows=1, new_tokens=2)
    assert list(seconds) == ["before", "before, cached", "after"]
    assert all(value > 0 for value in seconds.values())
