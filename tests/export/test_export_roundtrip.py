"""`deploy`: what cannot run where it must is refused early, and an export that does not bring our answers back fails the gate."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from export_builders import PAIRS, published
from helpers import a_task, examples

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.data import Splits
from prompt_core.deploy import RUNS, check_kind, formats_for, kinds_for, table
from prompt_core.errors import PromptmillError
from prompt_core.evaluation.evaluate import evaluate
from prompt_core.export.export import FORMATS
from prompt_core.export.roundtrip import form_of, round_trips
from prompt_core.task_file import parse_task
from prompt_core.text.prompt import TextPrompt
from prompt_core.tuning.propose import space_of
from prompt_core.tuning.tune import tune

ROWS: list[dict[str, Any]] = [{"text": "Where is parcel number 3?", "more": "today"}, {"text": "Is it lost", "more": "now"}]
SOFT = {"prompt": {"kind": "soft"}}


def tried(prompt: TunedPrompt, backbone: Backbone, *stacks: str) -> list[tuple[str, bool, str]]:
    task = prompt.task.model_copy(update={"deploy": stacks})
    return [(trip.format, trip.passed, trip.detail) for trip in round_trips(task, prompt, backbone, ROWS)]


def test_the_table_in_the_documentation_is_the_one_that_is_checked() -> None:
    page = (Path(__file__).parents[2] / "docs" / "exports.md").read_text(encoding="utf-8")
    assert table() in page
    assert {name.split()[0] for runs in RUNS.values() for formats in runs.values() for name in formats} == set(FORMATS)


def test_stacks_that_stand_in_one_column_run_the_same() -> None:
    for form in RUNS:
        assert formats_for(form, "llama.cpp") == formats_for(form, "ollama") and formats_for(form, "vllm") == formats_for(form, "sglang")


@pytest.mark.parametrize(
    ("stacks", "kinds"), [((), ("soft", "deep", "text")), (("llama.cpp",), ("soft", "text")), (("peft", "vllm"), ("soft",))]
)
def test_the_kinds_that_run_in_all_of_the_stacks(stacks: Any, kinds: Any) -> None:
    assert kinds_for(stacks) == kinds


def test_a_kind_that_cannot_run_there_is_refused_in_the_task_file() -> None:
    content = {
        "name": "t",
        "backbone": "smollm2",
        "objective": "generate",
        "template": "{{ x }}",
        "data": {"path": "a.csv", "target": "y"},
        "deploy": ["vllm", "llama.cpp"],
    }
    with pytest.raises(
        PromptmillError, match=r"t.yaml: prompt: kind deep cannot run in vllm, which deploy names. Write prompt: {kind: soft or"
    ):
        parse_task(content, "t.yaml", Path())
    with pytest.raises(PromptmillError, match=r"deploy.0: Input should be 'llama.cpp', 'ollama'"):
        parse_task(content | {"deploy": ["lama"]}, "t.yaml", Path())
    parse_task(content | SOFT, "t.yaml", Path())
    check_kind("deep", ("peft", "transformers"), "prompt")


def test_a_search_chooses_only_among_kinds_that_run_there(llama: Backbone) -> None:
    def searching(**parts: Any) -> Any:
        task = a_task(llama.identity.name, prompt={"kind": "auto"}, objective="generate", deploy=["vllm"], **parts)
        return space_of(task, task.search, llama, 50)["prompt.kind"]

    assert searching() == ("soft",)
    assert searching(tune={"search": {"space": {"prompt.kind": ["deep", "soft"]}}}) == ("soft",)
    with pytest.raises(PromptmillError, match=r"tune.search.space: leaves no kind that runs in vllm \(deploy\). Let it choose from soft"):
        searching(tune={"search": {"space": {"prompt.kind": ["deep"]}}})


def test_a_prompt_on_an_encoder_runs_in_promptmill_alone(bert: Backbone) -> None:
    rows = examples(*[(f"a {i}", "ab"[i % 2]) for i in range(4)])
    with pytest.raises(
        PromptmillError, match=r"tiny-bert is no causal model, and its prompts cannot run in transformers, which deploy names"
    ):
        tune(a_task(bert.identity.name, deploy=["transformers"]), rows, None, bert)
    prompt = tune(a_task(bert.identity.name, tune={"steps": 1}, deploy=["promptmill"]), rows, None, bert)
    assert tried(prompt, bert, "promptmill") == [("folder", True, "digest and 2 answers are ours")]


@pytest.mark.parametrize(
    ("template", "kind", "form"),
    [
        ("Answer briefly. {{ text }}\n", "soft", "soft in front"),
        ("{{ soft(3) }} Answer. {{ text }}\n", "soft", "soft in front"),
        ("Read {{ soft(3) }} this: {{ text }}\n", "soft", "soft amid the root"),
        ("Read: {{ text }} {{ soft(2) }} and {{ more }}\n", "soft", "soft behind a field"),
        ("Answer briefly. {{ text }}\n", "deep", "deep"),
        ("Read: {{ text }} {{ soft(2) }}\n", "deep", "deep and soft behind a field"),
    ],
)
def test_every_form_runs_in_exactly_the_stacks_of_its_row(llama: Backbone, template: str, kind: str, form: Any) -> None:
    prompt = published(llama, template, prompt={"kind": kind}).prompt
    assert form_of(prompt, llama) == form
    for stack in ("transformers", "sglang", "peft", "tgis", "promptmill"):
        ((written, passed, detail),) = tried(prompt, llama, stack)
        assert passed == bool(formats_for(form, stack)), f"{form} in {stack} as {written}: {detail}"


@pytest.mark.parametrize("kind", ["soft", "deep"])
def test_a_classifier_runs_where_a_writer_does(llama: Backbone, kind: str) -> None:
    rows = [(f"where is my parcel {i}", "late") for i in range(4)] + [(f"my lamp {i} is broken", "damaged in transit") for i in range(4)]
    tune_: dict[str, Any] = {"steps": 4, "learning_rate": 0.05}
    task = a_task(llama.identity.name, template="Say what it is. {{ text }}\n", prompt={"kind": kind}, tune=tune_)
    prompt = tune(task, examples(*rows), None, llama)
    for stack in ("transformers", "peft"):
        ((written, passed, detail),) = tried(prompt, llama, stack)
        assert passed and detail.startswith("2 of 2 texts are ours"), f"{written}: {detail}"


def test_beams_are_those_of_transformers(llama: Backbone) -> None:
    for parts in (SOFT, {"prompt": {"kind": "deep"}}):
        prompt = published(llama, **parts, evaluate={"max_new_tokens": 16, "beams": 4}).prompt
        for stack in ("transformers", "peft", "promptmill"):
            ((written, passed, detail),) = tried(prompt, llama, stack)
            assert passed and ("2 of 2 texts are ours" in detail or stack == "promptmill"), f"{stack} as {written}: {detail}"
        greedy = published(llama, **parts, evaluate={"max_new_tokens": 16}).prompt
        assert prompt.predict(ROWS, llama) != greedy.predict(ROWS, llama)


def test_llama_cpp_is_given_a_folder_to_convert_where_the_base_is_no_gguf_file(llama: Backbone) -> None:
    ((written, passed, detail),) = tried(published(llama, **SOFT).prompt, llama, "llama.cpp")
    assert (written, passed) == ("tokens", True) and detail.startswith("2 of 2 texts are ours, chrF 100")


def test_a_consumer_that_fails_in_its_own_way_fails_the_gate_and_not_the_evaluation(llama: Backbone, tmp_path: Path) -> None:
    prompt = published(llama, prompt={"kind": "deep"}).prompt
    shutil.copytree(str(llama.origin), base := tmp_path / "base")
    (base / "generation_config.json").write_text('{"bad_words_ids": [[-1]]}')  # transformers' own, refused when it writes
    moved = TunedPrompt(prompt.manifest, prompt.tensors, str(base))
    ((written, passed, detail),) = tried(moved, llama, "transformers")
    assert (written, passed) == ("kv", False) and detail.startswith("ValueError: Each list in `bad_words_ids`")


def test_words_are_asked_as_they_are_here(llama: Backbone) -> None:
    prompt = published(llama, **SOFT).prompt
    update = {"kind": "text", "text": TextPrompt(template="Answer {braces} now. {{ text }}\n"), "tuning": None}
    words = TunedPrompt(prompt.manifest.model_copy(update=update), {}, prompt.origin)
    assert tried(words, llama, "vllm") == [("text", True, "what a model is asked is ours for 2 inputs")]


def test_a_stack_that_gives_other_answers_fails_the_gate(llama: Backbone) -> None:
    rows = examples(*PAIRS)
    splits = Splits(train=rows[:4], validation=rows[:0], test=rows[4:])
    content: dict[str, Any] = {
        "objective": "generate",
        "template": "Answer. {{ text }} {{ soft(2) }}\n",
        "evaluate": {"max_new_tokens": 4, "few_shot": 0},
    }
    task = a_task(llama.identity.name, tune={"steps": 1}, deploy=["tgis", "promptmill"], **content, **SOFT)
    evaluation = evaluate(task, tune(task, splits.train, None, llama), splits, llama)
    assert [(trip.stack, trip.passed) for trip in evaluation.round_trips] == [("tgis", False), ("promptmill", True)]
    assert not evaluation.verdict.passed
    finding = "does not run in tgis as no format: a prompt of this form (soft behind a field) cannot be expressed"
    assert finding in evaluation.verdict.reasons


@pytest.mark.slow
def test_llama_cpp_itself_writes_our_texts_of_a_gguf_base(smollm2: Backbone) -> None:
    chat = [{"system": "You answer customers of a parcel carrier in one short sentence."}, {"user": "{{ text }}"}]
    parts = {"prompt": {"kind": "soft"}, "tune": {"steps": 2, "learning_rate": 0.01}, "evaluate": {"max_new_tokens": 16}}
    prompt = tune(a_task("smollm2", template=chat, objective="generate", **parts), examples(*PAIRS), None, smollm2)
    ((written, passed, detail),) = tried(prompt, smollm2, "llama.cpp")
    assert (written, passed) == ("tokens --gguf", True), detail
