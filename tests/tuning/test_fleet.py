"""A fleet: many prompts in one loop, each what it becomes alone; one that fails or is through leaves the others be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import a_task, assert_equal_to_rounding, examples

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.encoded import Encoded
from prompt_core.errors import PromptmillError
from prompt_core.manifest import TuningRecord
from prompt_core.methods import TuneSpec
from prompt_core.prompts import SoftPrompt
from prompt_core.task import TaskSpec
from prompt_core.tuning import Step, tune, tune_fleet
from prompt_core.tuning.gradient import optimise
from prompt_core.tuning.member import Member, Part
from prompt_core.tuning.objective import Generation

WORDS = ["parcel", "letter", "invoice", "driver", "door", "street", "label", "scanner", "depot", "truck"]
TRAIN = examples(*[(f"The {word} is {'late' if i % 2 else 'broken'}", "late" if i % 2 else "broken") for i, word in enumerate(WORDS)])
VALIDATION = examples(("My box is late", "late"), ("My box is broken", "broken"))
ROOTED = "Sort this complaint: {{ text }}\nKind:"
TUNE = {"steps": 6, "batch_examples": 4, "validate_every": 2}


def a_member(backbone: Backbone, **tune: Any) -> TaskSpec:
    parts = {name: tune.pop(name) for name in ("prompt", "objective", "template") if name in tune}
    return a_task(backbone.identity.name, **{"template": ROOTED, "tune": TUNE | tune, **parts})


def test_each_prompt_of_a_fleet_is_the_one_that_is_tuned_alone(llama: Backbone) -> None:
    tasks = [
        a_member(llama, prompt={"kind": "soft"}),
        a_member(llama, prompt={"kind": "deep"}, seed=1, batch_examples=7),
        a_member(llama, prompt={"kind": "soft", "network": "mlp", "hidden": 8}, objective="generate"),
        a_member(llama, prompt={"kind": "soft"}, template="Sort {{ soft(2) }}: {{ text }}{{ soft(3) }} Kind:", steps=3, learning_rate=1e-3),
    ]
    together = tune_fleet(tasks, [(TRAIN, VALIDATION)] * len(tasks), llama)
    for task, found in zip(tasks, together, strict=True):
        assert isinstance(found, TunedPrompt)
        alone = tune(task, TRAIN, VALIDATION, llama)
        assert found.manifest.tuning.steps == alone.manifest.tuning.steps
        assert found.manifest.tuning.train_loss == pytest.approx(alone.manifest.tuning.train_loss, rel=1e-4)
        for name, tensor in alone.tensors.items():
            # AdamW turns a gradient of no size into a step of full size, so rounding can show in single entries.
            assert float((found.tensors[name] - tensor).abs().mean()) < 1e-4


def test_the_encoders_prompts_share_a_pass_too(bert: Backbone) -> None:
    tasks = [a_member(bert, prompt={"tokens": tokens}, template="{{ text }}", seed=tokens) for tokens in (2, 5)]
    for task, found in zip(tasks, tune_fleet(tasks, [(TRAIN, VALIDATION)] * 2, bert), strict=True):
        assert isinstance(found, TunedPrompt)
        assert found.manifest.tuning.train_loss == pytest.approx(tune(task, TRAIN, VALIDATION, bert).manifest.tuning.train_loss, rel=1e-4)


def test_a_task_that_cannot_be_tuned_is_an_error_of_its_own(llama: Backbone) -> None:
    tasks = [a_member(llama), a_member(llama, prompt={"kind": "soft", "start": "root"}, template="{{ text }}"), a_member(llama)]
    sides = [(TRAIN, VALIDATION), (TRAIN, VALIDATION), (TRAIN.clear(), None)]
    first, second, third = tune_fleet(tasks, sides, llama)
    assert isinstance(first, TunedPrompt) and first.digest == tune(tasks[0], TRAIN, VALIDATION, llama).digest
    assert isinstance(second, PromptmillError) and "prompt.start: root, but the template starts with a field" in str(second)
    assert isinstance(third, PromptmillError) and "there is no training example" in str(third)


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own address space")
def test_a_task_whose_start_does_not_come_into_memory_fails_alone(llama: Backbone) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    wide = a_member(llama, prompt={"kind": "soft", "network": "mlp", "hidden": 65536})  # 16 GiB in its second layer
    try:
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**32, before[1]))
        large, other = tune_fleet([wide, a_member(llama)], [(TRAIN, VALIDATION)] * 2, llama)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert isinstance(large, PromptmillError) and isinstance(other, TunedPrompt)
    assert str(large).startswith("tuning: the memory does not suffice for what precedes its tuning (") and "can't allocate" in str(large)


def test_steps_that_are_left_out_follow_the_number_of_examples(llama: Backbone) -> None:
    twenty = examples(*[(f"The {word} is {state}", state) for word in WORDS for state in ("late", "broken")])
    steps = [tune(a_member(llama, steps=None, batch_examples=1), rows, None, llama).manifest.tuning.steps for rows in (TRAIN, twenty)]
    assert steps == [80, 100]


def test_a_fleet_has_one_backbone(llama: Backbone) -> None:
    tasks = [a_member(llama), a_task("minilm")]
    with pytest.raises(PromptmillError, match="task t: backbone: does not name the backbone of t"):
        tune_fleet(tasks, [(TRAIN, VALIDATION)] * 2, llama)


def members(backbone: Backbone, count: int, seen: list[tuple[int, Step]] | None = None) -> list[Member]:
    data = [Encoded((100 + i, 200 + i, 300), (400 + i % 3, 0), False) for i in range(12)]
    found = []
    for number in range(count):
        rows = backbone.embed(torch.arange(50 + number, 53 + number))
        spec = TuneSpec(steps=4 + number, batch_examples=3, validate_every=2, learning_rate=1e-3)
        on_step = None if seen is None else (lambda step, number=number: seen.append((number, step)))
        generator = torch.Generator().manual_seed(number)
        part = Part(SoftPrompt(backbone, rows), Generation(backbone), data, data[:2])
        found.append(Member([part], spec, generator, on_step))
    return found


def test_a_prompt_whose_loss_is_not_finite_leaves_and_the_others_go_on(llama: Backbone) -> None:
    alone, fleet = members(llama, 3), members(llama, 3)
    fleet[1].parts[0].prompt.embeddings.data[0, 0] = float("nan")
    expected = [optimise(llama, [member])[0] for member in alone]
    found = optimise(llama, fleet)
    assert isinstance(found[1], PromptmillError)
    assert str(found[1]).startswith("step 1: the training loss is nan, also after 3 returns")
    for number in (0, 2):
        record, other = found[number], expected[number]
        assert isinstance(record, TuningRecord) and isinstance(other, TuningRecord)
        assert record.train_loss == pytest.approx(other.train_loss, rel=1e-5)
        assert_equal_to_rounding(fleet[number].parts[0].prompt.embeddings, alone[number].parts[0].prompt.embeddings)


def test_every_member_reports_its_own_steps(llama: Backbone) -> None:
    seen: list[tuple[int, Step]] = []
    records = optimise(llama, members(llama, 3, seen))
    assert [record.steps for record in records if isinstance(record, TuningRecord)] == [4, 5, 6]
    for number in range(3):
        assert [step.number for member, step in seen if member == number] == list(range(1, 5 + number))
    assert [step.number for member, step in seen if member == 0 and step.validation_loss is not None] == [2, 4]
