"""`tune`: the same inputs give the same digest, other inputs another, and what the artifact records is what happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from helpers import a_task, examples

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.errors import PromptmillError
from prompt_core.text.prompt import Demonstration
from prompt_core.tuning import Step, tune
from prompt_core.tuning.prepared import Prepared

WORDS = ["parcel", "letter", "invoice", "driver", "door", "street", "label", "scanner", "depot", "truck"]
TRAIN = examples(*[(f"The {word} is {'late' if i % 2 else 'broken'}", "late" if i % 2 else "broken") for i, word in enumerate(WORDS)])
VALIDATION = examples(("My box is late", "late"), ("My box is broken", "broken"))
ROOTED = "Sort this complaint: {{ text }}\nKind:"


def tuned(backbone: Backbone, seed: int = 0, template: str = ROOTED, validation: pl.DataFrame = VALIDATION, **parts: Any) -> TunedPrompt:
    task = a_task(
        backbone.identity.name, template=template, tune={"seed": seed, "steps": 6, "batch_examples": 4, "validate_every": 2}, **parts
    )
    return tune(task, TRAIN, validation, backbone)


@pytest.mark.parametrize("kind", ["soft", "deep"])
@pytest.mark.parametrize("objective", ["classify", "generate"])
def test_a_causal_prompt_has_the_same_digest_for_the_same_seed_alone(llama: Backbone, kind: str, objective: str) -> None:
    parts = {"prompt": {"kind": kind}, "objective": objective}
    digests = [tuned(llama, seed, **parts).digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_an_encoder_prompt_has_the_same_digest_for_the_same_seed_alone(bert: Backbone) -> None:
    digests = [tuned(bert, seed, prompt={"tokens": 4}, template="{{ text }}").digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_seed_zero_is_a_seed(llama: Backbone) -> None:
    first = tuned(llama, 0).digest
    torch.manual_seed(123)  # whatever the process drew before
    torch.randn(7)
    assert tuned(llama, 0).digest == first


def test_the_order_of_the_rows_in_memory_is_not_drawn_from_the_clock(llama: Backbone) -> None:
    one, other = tuned(llama), tuned(llama)
    assert one.manifest == other.manifest
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_the_manifest_tells_what_happened(llama: Backbone) -> None:
    seen: list[Step] = []
    task = a_task(llama.identity.name, template=ROOTED, tune={"steps": 6, "batch_examples": 4, "validate_every": 2}, objective="generate")
    prompt = tune(task, TRAIN, VALIDATION, llama, on_step=seen.append)
    manifest = prompt.manifest
    assert [step.number for step in seen] == list(range(1, manifest.tuning.steps + 1))
    assert len(manifest.tuning.train_loss) == manifest.tuning.steps
    assert manifest.tuning.kept_step in [look.step for look in manifest.tuning.validation]
    assert (manifest.data.train_rows, manifest.data.validation_rows, manifest.labels) == (10, 2, ())
    assert manifest.parameters == sum(tensor.numel() for tensor in prompt.tensors.values())
    assert manifest.max_new_tokens == 3  # targets are one word and the end of turn, and a quarter more, rounded up
    assert manifest.backbone == llama.identity
    assert str(Path.cwd()) not in manifest.canonical().decode() and "examples.csv" not in manifest.canonical().decode()


def test_tuning_lowers_the_loss_and_leaves_the_model_alone(llama: Backbone) -> None:
    before = llama.vocabulary.clone()
    losses = tune(
        a_task(llama.identity.name, template=ROOTED, tune={"steps": 30, "learning_rate": 0.03}), TRAIN, VALIDATION.clear(), llama
    ).manifest.tuning.train_loss
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert torch.equal(llama.vocabulary, before) and not any(p.requires_grad or p.grad is not None for p in llama._model.parameters())


def test_without_validation_rows_the_last_step_is_kept(llama: Backbone) -> None:
    record = tuned(llama, validation=VALIDATION.clear()).manifest.tuning
    assert (record.steps, record.kept_step, record.validation) == (6, 6, ())


def test_a_batch_over_the_token_budget_gives_the_same_prompt_to_rounding(llama: Backbone) -> None:
    sizes = {"steps": 4, "batch_examples": 10}
    whole, parts = (
        tune(a_task(llama.identity.name, template=ROOTED, tune={**sizes, "batch_tokens": budget}), TRAIN, VALIDATION.clear(), llama)
        for budget in (8192, 40)
    )
    assert whole.manifest.tuning.train_loss == pytest.approx(parts.manifest.tuning.train_loss, rel=1e-3)


def test_a_saved_prompt_predicts_what_the_tuned_one_does(tmp_path: Path, llama: Backbone) -> None:
    prompt = tuned(llama)
    prompt.save(tmp_path / "p")
    texts = TRAIN["text"].to_list()
    assert TunedPrompt.load(tmp_path / "p").predict(texts, llama) == prompt.predict(texts, llama)


def test_what_cannot_be_tuned_is_one_line(llama: Backbone, bert: Backbone) -> None:
    with pytest.raises(PromptmillError, match=r"task t: data: there is no training example. Add rows"):
        tune(a_task(), TRAIN.clear(), None, llama)
    with pytest.raises(PromptmillError, match='label "strange" has no training example'):
        tune(a_task(template=ROOTED), TRAIN, examples(("A thing", "strange")), llama)
    with pytest.raises(PromptmillError, match=r"task t: objective: generate, but tiny-bert is an encoder. Use a causal model"):
        tuned(bert, objective="generate")
    with pytest.raises(PromptmillError, match=r"prompt.tokens: a prompt of 250 tokens and an example of \d+ need more than the 256"):
        tuned(llama, prompt={"kind": "soft", "tokens": 250})


def test_a_prompt_starts_from_another_tuned_prompt_and_says_so(tmp_path: Path, llama: Backbone) -> None:
    first = tuned(llama, prompt={"kind": "soft"})
    first.save(tmp_path / "first")
    begun = {"start": "prompt", "start_from": str(tmp_path / "first")}
    for kind in ("soft", "deep"):
        task = a_task(llama.identity.name, template=ROOTED, prompt={"kind": kind, **begun}, tune={"steps": 1, "learning_rate": 1e-12})
        second = tune(task, TRAIN, VALIDATION, llama)
        assert second.manifest.started_from == first.digest
        assert second.predict(TRAIN["text"].to_list(), llama) == first.predict(TRAIN["text"].to_list(), llama)
        assert str(tmp_path) not in second.manifest.model_dump_json()
    second.save(tmp_path / "deep")
    with pytest.raises(PromptmillError, match=r"prompt.start_from: t is a deep prompt. A soft prompt can start from a soft one"):
        tuned(llama, prompt={"kind": "soft", "start": "prompt", "start_from": str(tmp_path / "deep")})


def test_a_deep_prompt_with_soft_tokens_in_the_examples_goes_on_from_all_of_another(tmp_path: Path, llama: Backbone) -> None:
    template = "Sort this: {{ text }}{{ soft(2) }}\nKind:"
    first = tuned(llama, template=template, prompt={"kind": "deep"})
    first.save(tmp_path / "first")
    begun = {"start": "prompt", "start_from": str(tmp_path / "first")}
    on = a_task(llama.identity.name, template=template, prompt={"kind": "deep", **begun})
    assert all(torch.equal(found, first.tensors[name]) for name, found in Prepared(on, (TRAIN, None), llama).prompt.tensors().items())
    with pytest.raises(PromptmillError, match=r"prompt.start_from: t is a deep prompt. A soft prompt can start from a soft one"):
        tuned(llama, prompt={"kind": "soft", **begun})


@pytest.mark.parametrize(("shown", "left"), [(4, 6), (10, 10)])  # where nothing would be left, all are tuned on
def test_a_row_that_stands_in_the_prompt_is_not_tuned_on(llama: Backbone, shown: int, left: int) -> None:
    prompt = {"kind": "deep", "start": "demonstrations", "demonstrations": shown}
    task = a_task(llama.identity.name, template="Sort: {{ text }}\nKind:", prompt=prompt, tune={"max_tokens": 64})
    assert len(Prepared(task, (TRAIN, VALIDATION), llama).part.train) == left


def test_the_demonstrations_of_a_start_are_different_texts(llama: Backbone) -> None:
    rows = examples(*[(f"parcel {i}", f"in depot {j}") for i in range(6) for j in range(2)])
    prompt = {"kind": "deep", "start": "demonstrations", "demonstrations": 3}
    task = a_task(llama.identity.name, objective="generate", template="{{ text }}:", prompt=prompt, tune={"max_tokens": 64})
    assert len(Prepared(task, (rows, None), llama).part.train) == 6  # both targets of three texts


def test_a_row_that_stands_in_the_text_prompt_it_starts_from_is_not_tuned_on(llama: Backbone) -> None:
    words = tune(
        a_task(llama.identity.name, template=ROOTED, prompt={"kind": "text"}, text={"rounds": 1, "together": 2}), TRAIN, None, llama
    )
    assert words.manifest.text
    shown = tuple(Demonstration(fields={"text": row["text"]}, answer=row["label"]) for row in TRAIN.head(3).iter_rows(named=True))
    text = words.manifest.text.model_copy(update={"demonstrations": shown, "retrieval": None})
    source = TunedPrompt(words.manifest.model_copy(update={"text": text}), words.tensors)
    task = a_task(
        llama.identity.name, template=ROOTED, prompt={"kind": "deep", "start": "prompt", "start_from": "-"}, tune={"max_tokens": 64}
    )
    part = Prepared(task, (TRAIN, VALIDATION), llama, source=source).part
    other = Prepared(task, (TRAIN.tail(7), VALIDATION), llama, source=source).part
    assert part.train == other.train and len(other.train) == 7


@pytest.mark.parametrize("kind", ["soft", "deep"])
def test_soft_tokens_of_a_template_are_tuned_saved_and_used(tmp_path: Path, llama: Backbone, kind: str) -> None:
    template = "Sort this: {{ text }}{{ soft(3) }}\nKind:" if kind == "deep" else "Sort {{ soft(2) }}: {{ text }}{{ soft(3) }}"
    prompt = tuned(llama, template=template, prompt={"kind": kind})
    assert prompt.tensors["embeddings"].shape[0] == (5 if kind == "soft" else 3)
    prompt.save(tmp_path / "p")
    texts = TRAIN["text"].to_list()
    assert TunedPrompt.load(tmp_path / "p").predict(texts, llama) == prompt.predict(texts, llama)
