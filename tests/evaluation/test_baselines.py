"""What a tuned prompt has to beat, and `evaluate`, which runs all contenders on the same test rows."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from pathlib import Path

import polars as pl
import pytest
import torch
from encoder_decoders import save_encoder_decoder
from helpers import a_task, backbone_at, examples, save_tiny

from prompt_core.backbone import Backbone
from prompt_core.data import Splits
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError
from prompt_core.evaluation.baselines import baselines
from prompt_core.evaluation.evaluate import evaluate
from prompt_core.evaluation.untuned import untuned_digest
from prompt_core.prompts import PromptState
from prompt_core.task import TaskSpec
from prompt_core.tuning import tune
from prompt_core.tuning.build import build_classifier

ROWS = [
    (f"The {thing} is {state}", kind)
    for state, kind in (("late", "a"), ("broken", "b"))
    for thing in ("box", "bag", "van", "lid", "map", "pen")
]
SPLITS = Splits(train=examples(*ROWS[::2]), validation=examples(), test=examples(*ROWS[1::2]))


def contenders_of(task: TaskSpec, backbone: Backbone, splits: Splits = SPLITS) -> tuple[list[tuple[str, str]], list[tuple[str, int, int]]]:
    seen: list[tuple[str, int, int]] = []
    prompt = tune(task, splits.train, splits.validation, backbone)
    result = evaluate(task, prompt, splits, backbone, on_progress=lambda *news: seen.append(news))
    return [(c.name, c.kind) for c in result.contenders], seen


def test_an_encoder_is_compared_with_label_names_and_a_linear_probe(bert: Backbone) -> None:
    contenders, seen = contenders_of(a_task(bert.identity.name, tune={"steps": 2}), bert)
    assert contenders == [("label_names", "untuned"), ("linear_probe", "rival"), ("tuned", "tuned")]
    assert ("label_names", 6, 6) in seen and ("tuned", 6, 6) in seen


def test_baselines_are_measured_again_with_another_version_of_what_fits_the_probe(bert: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    task = a_task(bert.identity.name)
    before = untuned_digest(task, SPLITS, bert)
    assert untuned_digest(task, SPLITS, bert) == before
    installed = metadata.Distribution.version
    another = property(lambda found: "0.1" if found.metadata["Name"] == "scikit-learn" else installed.fget(found))  # type: ignore[attr-defined]
    monkeypatch.setattr(metadata.Distribution, "version", another)
    assert untuned_digest(task, SPLITS, bert) != before


@pytest.mark.parametrize("template", ["Say a or b. {{ text }}\nIt is", "{{ text }}\nIt is"])
def test_a_causal_classifier_is_compared_with_and_without_demonstrations(llama: Backbone, template: str) -> None:
    task = a_task(llama.identity.name, template=template, tune={"steps": 2, "max_tokens": 64})
    untuned = [(name, "untuned") for name in ("zero_shot", "zero_shot_calibrated", "few_shot")]
    assert contenders_of(task, llama)[0] == [*untuned, ("tuned", "tuned")]


def test_a_calibrated_zero_shot_answers_as_label_words_less_their_mean_log_probability(llama: Backbone) -> None:
    task = a_task(
        llama.identity.name, template="Say a or b. {{ text }}\nIt is", evaluate={"few_shot": 0}, labels={"a": "the first", "b": "no"}
    )
    encoding = TaskEncoding(task, llama)
    seen, inputs = ([encoding.encode({"text": text}) for text in side["text"]] for side in (SPLITS.train, SPLITS.test))
    classifier, prompt = build_classifier(task, encoding, llama, ["a", "b"]), PromptState.of(llama, root=encoding.root)
    with torch.no_grad():
        known, asked = (classifier.scores_behind(prompt, side) for side in (seen, inputs))
    best = (asked - known.log_softmax(-1).mean(0)).argmax(-1).tolist()
    rows = list(SPLITS.test.iter_rows(named=True))
    found = {contender.name: list(contender.predictions) for contender in baselines(task, SPLITS.train, rows, llama, None)}
    assert found["zero_shot_calibrated"] == ["ab"[i] for i in best] != found["zero_shot"]


def test_an_encoder_decoder_is_compared_with_itself_untuned(tmp_path: Path) -> None:
    backbone = backbone_at(str(save_encoder_decoder("t5", tmp_path / "t5")))
    task = a_task("t5", template="Sort this : {{ text }} Kind :", objective="generate", tune={"steps": 2})
    assert contenders_of(task, backbone)[0] == [("zero_shot", "untuned"), ("few_shot", "untuned"), ("tuned", "tuned")]


def test_a_writer_is_measured_on_texts(llama: Backbone) -> None:
    task = a_task(
        llama.identity.name,
        template="Go. {{ text }}\n",
        objective="generate",
        tune={"steps": 2, "max_tokens": 64},
        evaluate={"few_shot": 0},
    )
    assert contenders_of(task, llama)[0] == [("zero_shot", "untuned"), ("tuned", "tuned")]


def test_behind_solved_lines_a_model_writes_one_answer_and_no_further_lines(smollm2: Backbone) -> None:
    capitals = [
        ("France", "Paris"),
        ("Italy", "Rome"),
        ("Germany", "Berlin"),
        ("Spain", "Madrid"),
        ("Japan", "Tokyo"),
        ("Greece", "Athens"),
    ]
    known, asked = examples(*capitals[:4]), examples(*capitals[4:])
    parts = {"objective": "generate", "evaluate": {"few_shot": 4, "metrics": ["exact_match"], "max_new_tokens": 16}}
    task = a_task("smollm2", template="Country: {{ text }}\nCapital:", **parts)
    found = {each.name: list(each.predictions) for each in baselines(task, known, asked.rows(named=True), smollm2, 16)}
    assert found["few_shot"] == asked["label"].to_list()


@pytest.mark.parametrize("objective", ["classify", "generate"])
def test_a_long_test_row_is_cut_to_the_positions_that_labels_or_an_answer_leave(tmp_path: Path, objective: str) -> None:
    gpt2 = backbone_at(str(save_tiny("gpt2", tmp_path / "gpt2")))  # whose positions are a table
    parts = {"objective": objective, "evaluate": {"few_shot": 0}, "tune": {"max_tokens": 4096}}
    task = a_task(gpt2.identity.name, template="Say a or b. {{ text }}\nIt is", labels={"a": "the first of both", "b": "no"}, **parts)
    rows = [{"text": "box " * 2000, "label": "a"}, {"text": "box", "label": "b"}]
    longest = None if objective == "classify" else 20
    found = baselines(task, SPLITS.train, rows, gpt2, longest)
    alone = baselines(task, SPLITS.train, rows[1:], gpt2, longest)
    assert [each.predictions[1] for each in found] == [each.predictions[0] for each in alone]


def test_what_runs_today_is_a_contender_unless_it_is_the_same_prompt(llama: Backbone) -> None:
    task = a_task(
        llama.identity.name, template="Say a or b. {{ text }}\nIt is", tune={"steps": 2, "max_tokens": 64}, evaluate={"few_shot": 0}
    )
    prompt = tune(task, SPLITS.train, None, llama)
    other = tune(task.model_copy(update={"tune": task.tune.model_copy(update={"seed": 1})}), SPLITS.train, None, llama)
    names = [[c.name for c in evaluate(task, prompt, SPLITS, llama, production=live).contenders] for live in (None, prompt, other)]
    untuned = ["zero_shot", "zero_shot_calibrated"]
    assert names == [[*untuned, "tuned"], [*untuned, "tuned"], [*untuned, "production", "tuned"]]


def test_what_runs_today_answers_on_its_own_model_or_keeps_the_gate_shut(llama: Backbone, bert: Backbone) -> None:
    parts = {"tune": {"steps": 2, "max_tokens": 64}, "evaluate": {"few_shot": 0}}
    prompt = tune(task := a_task(llama.identity.name, template="Say a or b. {{ text }}\nIt is", **parts), SPLITS.train, None, llama)
    elsewhere = tune(a_task(bert.identity.name, **parts), SPLITS.train, None, bert)
    found = evaluate(task, prompt, SPLITS, llama, production=elsewhere)
    assert found.production_digest == elsewhere.digest
    assert [c.name for c in found.contenders][-2:] == ["production", "tuned"] and "production" in found.seconds
    gone = evaluate(task, prompt, SPLITS, llama, production=replace(elsewhere, origin="/no/such/model"))
    assert "production" not in [c.name for c in gone.contenders] and not gone.verdict.passed
    assert gone.verdict.reasons[0].startswith("cannot be compared with what is in production: ")


def test_a_prompt_that_was_tuned_on_what_are_test_rows_now_does_not_pass(bert: Backbone) -> None:
    def shared(share: float) -> TaskSpec:
        data = {"path": "examples.csv", "target": "label", "test": share}
        return a_task(bert.identity.name, data=data, tune={"steps": 2})

    prompt = tune(shared(0.1), SPLITS.train, SPLITS.validation, bert)
    moved = Splits(train=SPLITS.train[::2], validation=SPLITS.validation, test=pl.concat([SPLITS.train[1::2], SPLITS.test]))
    reason = "may have been tuned on test rows: data.test takes 0.5 of the rows now, 0.1 were held out then"
    judged = evaluate(shared(0.5), prompt, moved, bert).verdict
    assert not judged.passed and judged.reasons[0] == reason
    for task, splits in ((shared(0.1), moved), (shared(0.05), moved), (shared(0.5), SPLITS)):  # no more rows, or the very same
        assert reason.partition(":")[0] not in " ".join(evaluate(task, prompt, splits, bert).verdict.reasons)


def test_what_runs_today_is_said_to_look_better_than_it_is_where_it_has_seen_test_rows(bert: Backbone) -> None:
    def shared(share: float) -> TaskSpec:
        return a_task(bert.identity.name, data={"path": "examples.csv", "target": "label", "test": share}, tune={"steps": 2})

    moved = Splits(train=SPLITS.train[::2], validation=SPLITS.validation, test=pl.concat([SPLITS.train[1::2], SPLITS.test]))
    live = tune(shared(0.1), SPLITS.train, SPLITS.validation, bert)
    said = "what is in production may have been tuned on test rows, and then looks better than it is: data.test takes 0.5 of the rows"
    for share, shown in ((0.5, True), (0.1, False)):
        prompt = tune(shared(share), moved.train, moved.validation, bert)
        reasons = evaluate(shared(share), prompt, moved, bert, production=live).verdict.reasons
        assert any(reason.startswith(said) for reason in reasons) is shown
        assert not any(reason.startswith("may have been") for reason in reasons)


def test_a_prompt_of_another_task_is_refused(bert: Backbone) -> None:
    task = a_task(bert.identity.name, tune={"steps": 1})
    prompt = tune(task, SPLITS.train, None, bert)
    with pytest.raises(PromptmillError, match=r"prompt t: is not of task other. Give the prompt and the task that it was tuned by"):
        evaluate(task.model_copy(update={"name": "other"}), prompt, SPLITS, bert)


@pytest.mark.parametrize(("field", "value"), [("template", "Read {{ text }}"), ("labels", {"a": "first"})])
def test_a_prompt_that_was_tuned_before_its_task_asked_something_else_is_refused(bert: Backbone, field: str, value: object) -> None:
    task = a_task(bert.identity.name, tune={"steps": 1})
    prompt = tune(task, SPLITS.train, None, bert)
    with pytest.raises(PromptmillError, match=rf"^prompt t: was tuned with another {field} than the task file has now\. Tune it again\.$"):
        evaluate(a_task(bert.identity.name, tune={"steps": 1}, **{field: value}), prompt, SPLITS, bert)


def test_an_evaluation_changes_neither_the_prompt_nor_the_random_stream(llama: Backbone) -> None:
    task = a_task(llama.identity.name, template="Say a or b. {{ text }}\nIt is", tune={"steps": 2, "max_tokens": 64})
    prompt = tune(task, SPLITS.train, None, llama)
    before = {name: tensor.clone() for name, tensor in prompt.tensors.items()}
    torch.manual_seed(0)
    expected = torch.random.get_rng_state()
    reports = [evaluate(task, prompt, SPLITS, llama).model_dump_json(exclude={"seconds"}) for _ in range(2)]
    assert reports[0] == reports[1]
    assert torch.equal(torch.random.get_rng_state(), expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in prompt.tensors.items())
