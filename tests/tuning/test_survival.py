"""What happens at 3 a.m.: a run that is killed goes on with the same bits; bad numbers, no memory, a full disk end well."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import backbone_at, save_tiny
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.encoded import Encoded
from prompt_core.errors import PromptmillError
from prompt_core.manifest import TuningRecord
from prompt_core.methods import TuneSpec
from prompt_core.prompts import SoftPrompt
from prompt_core.tuning.checkpoint import load_checkpoint, save_checkpoint
from prompt_core.tuning.gradient import Fleet, optimise
from prompt_core.tuning.member import Member, OnStep, Part
from prompt_core.tuning.objective import Generation

DATA = [Encoded((100 + i, 200 + i, 300), (400 + i % 3, 0), False) for i in range(12)]


class Faulty(Generation):
    """Generation whose loss goes wrong where `fault` says so, as hardware and numbers do."""

    def __init__(self, backbone: Backbone, fault: Callable[[Sequence[Encoded]], float]) -> None:
        super().__init__(backbone)
        self._fault = fault

    def loss(self, states: Tensor, examples: Sequence[Encoded]) -> Tensor:
        return super().loss(states, examples) * self._fault(examples)


def a_member(
    backbone: Backbone, seed: int = 0, fault: Callable[[Sequence[Encoded]], float] | None = None, on_step: OnStep | None = None, **spec: Any
) -> Member:
    settings = {"steps": 8, "batch_examples": 5, "validate_every": 2, "checkpoint_every": 2, "learning_rate": 1e-3}
    objective = Generation(backbone) if fault is None else Faulty(backbone, fault)
    prompt = SoftPrompt(backbone, backbone.embed(torch.arange(50 + seed, 53 + seed)))
    generator = torch.Generator().manual_seed(seed)
    return Member([Part(prompt, objective, DATA, DATA[:3])], TuneSpec(**{**settings, **spec}), generator, on_step)


def rows(member: Member) -> Tensor:
    return member.parts[0].prompt.state().rows


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 3, 5, 7])
def test_an_interrupted_fleet_goes_on_with_the_same_bits(tmp_path: Path, llama: Backbone, after: int) -> None:
    def stop(step: Any) -> None:
        if step.number == after:
            raise Interrupted

    whole = [a_member(llama), a_member(llama, 1, steps=5)]
    expected = optimise(llama, whole)
    file = tmp_path / "c.safetensors"
    with pytest.raises(Interrupted):
        optimise(llama, [a_member(llama, on_step=stop), a_member(llama, 1, steps=5)], file)
    assert file.exists() == (after > 2)  # a checkpoint is written after the second step has been reported
    resumed = [a_member(llama), a_member(llama, 1, steps=5)]
    assert optimise(llama, resumed, file) == expected
    assert all(torch.equal(rows(a), rows(b)) for a, b in zip(whole, resumed, strict=True))
    assert not file.exists()  # what is through leaves nothing behind


def test_a_fleet_out_of_step_returns_after_an_interruption_to_where_it_would_have_without_one(tmp_path: Path, llama: Backbone) -> None:
    def stop(step: Any) -> None:
        if step.number == 3:
            raise Interrupted

    def fleet(bad: int, on_step: OnStep | None = None) -> list[Member]:
        """The second one, whose own states to return to are steps 0, 4 and 8, has one bad loss: of the batch with that number from here."""
        batches = iter(range(100))

        def fault(examples: Sequence[Encoded]) -> float:
            return float("nan") if len(examples) == 5 and next(batches) == bad else 1.0

        return [a_member(llama, on_step=on_step), a_member(llama, 1, fault, checkpoint_every=4)]

    whole, file = fleet(3), tmp_path / "c.safetensors"
    expected = optimise(llama, whole)
    with pytest.raises(Interrupted):
        optimise(llama, fleet(3, stop), file)
    resumed = fleet(1)  # two steps are through
    assert optimise(llama, resumed, file) == expected
    assert isinstance(expected[1], TuningRecord) and expected[1].rollbacks == (4,)
    assert all(torch.equal(rows(a), rows(b)) for a, b in zip(whole, resumed, strict=True))


def test_trained_tokens_count_those_of_before_an_interruption_and_of_steps_taken_back(tmp_path: Path, llama: Backbone) -> None:
    told: list[Any] = []

    def stop(step: Any) -> None:
        if step.number == 5:
            raise Interrupted

    optimise(llama, [a_member(llama, on_step=told.append)])
    of_a_step = told[-1].tokens // 8
    with pytest.raises(Interrupted):
        optimise(llama, [a_member(llama, on_step=stop)], tmp_path / "c.safetensors")
    optimise(llama, [a_member(llama, on_step=told.append)], tmp_path / "c.safetensors")
    assert told[-1].tokens == 8 * of_a_step

    calls = iter(range(10_000))

    def sixth(examples: Sequence[Encoded]) -> float:
        return float("nan") if len(examples) == 5 and next(calls) == 5 else 1.0

    optimise(llama, [a_member(llama, fault=sixth, checkpoint_every=4, on_step=told.append)])
    assert told[-1].tokens == (8 + 2) * of_a_step and told[-1].tokens_per_second > 0


@pytest.mark.slow
def test_a_process_that_is_killed_at_any_moment_is_resumed_to_the_same_digest(tmp_path: Path, llama_folder: Path) -> None:
    moments = int(os.environ.get("PROMPTMILL_KILLS", "6"))
    script = Path(__file__).with_name("killed.py")
    done = subprocess.run(
        [sys.executable, str(script), str(llama_folder), str(tmp_path), str(moments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{moments} of {moments} resumed to the same digest" in done.stdout


def test_a_loss_that_is_not_finite_goes_back_and_halves_the_rate(llama: Backbone) -> None:
    calls = iter(range(10_000))

    def once(examples: Sequence[Encoded]) -> float:
        return float("nan") if next(calls) == 7 else 1.0

    rates: list[tuple[int, float]] = []
    member = a_member(llama, fault=once, decay="constant", warmup=0.0, on_step=lambda step: rates.append((step.number, step.learning_rate)))
    (record,) = optimise(llama, [member])
    assert isinstance(record, TuningRecord)
    assert record.steps == 8 and len(record.rollbacks) == 1 and len(record.train_loss) == 8
    back = record.rollbacks[0]
    assert {rate for number, rate in rates[: back - 1]} == {1e-3} and rates[-1][1] == 5e-4
    assert torch.isfinite(rows(member)).all()


def test_a_loss_that_stays_bad_ends_with_one_line_and_leaves_the_others_alone(llama: Backbone) -> None:
    alone = a_member(llama, 1)
    expected = optimise(llama, [alone])[0]
    bad, good = a_member(llama, fault=lambda examples: float("inf")), a_member(llama, 1)
    error, record = optimise(llama, [bad, good])
    assert isinstance(error, PromptmillError) and "\n" not in str(error)
    assert "step 1: the training loss is inf, also after 3 returns to the last good state at half the learning rate" in str(error)
    assert isinstance(record, TuningRecord) and isinstance(expected, TuningRecord)
    assert record.train_loss == pytest.approx(expected.train_loss, rel=1e-5)


def test_a_validation_loss_that_is_not_finite_is_worse_than_any_other(llama: Backbone) -> None:
    looks = iter(range(10_000))

    def first_look(examples: Sequence[Encoded]) -> float:
        return float("nan") if len(examples) == 3 and next(looks) == 0 else 1.0

    (record,) = optimise(llama, [a_member(llama, fault=first_look)])
    assert isinstance(record, TuningRecord) and record.validation[0].loss is None
    finite = {look.step: look.loss for look in record.validation[1:]}
    assert finite[record.kept_step] == min(finite.values())


def test_too_little_memory_means_smaller_passes(llama: Backbone, caplog: pytest.LogCaptureFixture) -> None:
    def small_only(examples: Sequence[Encoded]) -> float:
        if len(examples) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return 1.0

    free, tight = a_member(llama, batch_tokens=64), a_member(llama, batch_tokens=64, fault=small_only)
    with caplog.at_level(logging.WARNING, "promptmill"):
        (expected,), (found,) = optimise(llama, [free]), optimise(llama, [tight])
    assert isinstance(expected, TuningRecord) and isinstance(found, TuningRecord)
    assert found.train_loss == pytest.approx(expected.train_loss, rel=1e-5)
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory: passes take 32 tokens from here on",
        "out of memory: passes take 16 tokens from here on",
    ]


@pytest.mark.parametrize("looks", [False, True])
def test_a_prompt_that_the_memory_does_not_suffice_for_ends_alone_with_one_line(
    llama: Backbone, caplog: pytest.LogCaptureFixture, looks: bool
) -> None:
    def never(examples: Sequence[Encoded]) -> float:
        if looks and any(e in DATA[3:] for e in examples):  # as every batch that is learned from has one
            return 1.0
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    alone = a_member(llama, 1)
    (expected,) = optimise(llama, [alone])
    large, other = a_member(llama, batch_tokens=64, fault=never), a_member(llama, 1)
    with caplog.at_level(logging.WARNING, "promptmill"):
        fleet = Fleet(llama, [large, other])
        fleet.advance()
    assert fleet.budget == 8192
    error, record = fleet.finish()
    assert isinstance(error, PromptmillError)
    assert re.match(r"tuning: the memory does not suffice for one example \(.*can't allocate memory.*\)\. Free some, lower ", str(error))
    assert isinstance(record, TuningRecord) and isinstance(expected, TuningRecord)
    assert record.train_loss == pytest.approx(expected.train_loss, rel=1e-5)
    assert caplog.records[0].getMessage() == "out of memory: passes take 4096 tokens from here on"


def test_a_fleet_whose_every_prompt_is_too_large_for_the_memory_is_over(llama: Backbone) -> None:
    def never(examples: Sequence[Encoded]) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    found = optimise(llama, [a_member(llama, seed, fault=never) for seed in range(2)])
    assert [str(error)[:56] for error in found] == ["tuning: the memory does not suffice for one example (CUD"] * 2


def test_another_error_is_not_taken_for_a_lack_of_memory(llama: Backbone) -> None:
    def broken(examples: Sequence[Encoded]) -> float:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        optimise(llama, [a_member(llama, fault=broken)])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_costs_a_warning_and_keeps_the_checkpoint_before(
    tmp_path: Path, llama: Backbone, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "c.safetensors"
    optimise_until(llama, file, 5)
    before = file.read_bytes()
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=0))
    (tmp_path / f".{file.name}.{uuid.uuid4().hex}").symlink_to("/dev/full")  # where the next one is written beside
    found = load_checkpoint(file)
    assert found is not None
    with caplog.at_level(logging.WARNING, "promptmill"):
        save_checkpoint(file, found[0], found[1])
    assert "cannot be written (No space left on device). Tuning goes on without it." in caplog.text
    assert file.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [file.name]


def test_a_damaged_checkpoint_costs_a_warning_and_the_steps(tmp_path: Path, llama: Backbone, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "c.safetensors"
    optimise_until(llama, file, 5)
    file.write_bytes(file.read_bytes()[:100])
    expected, found = a_member(llama), a_member(llama)
    with caplog.at_level(logging.WARNING, "promptmill"):
        assert optimise(llama, [found], file) == optimise(llama, [expected])
    assert "cannot be read" in caplog.text and torch.equal(rows(found), rows(expected))


def optimise_until(backbone: Backbone, file: Path, step: int) -> None:
    def stop(at: Any) -> None:
        if at.number == step:
            raise Interrupted

    with pytest.raises(Interrupted):
        optimise(backbone, [a_member(backbone, on_step=stop)], file)


@pytest.mark.slow
def test_two_processes_follow_the_loss_of_one(tmp_path: Path, llama_folder: Path) -> None:
    script = tmp_path / "parallel.py"
    script.write_text(
        textwrap.dedent(
            """
            import json, sys
            import torch
            from helpers import backbone_at
            from test_survival import a_member, rows
            from prompt_core.tuning.gradient import optimise
            from prompt_core.tuning.parallel import process_group

            torch.set_num_threads(1)
            with process_group() as writes:
                backbone = backbone_at(sys.argv[1])
                member = a_member(backbone)
                (record,) = optimise(backbone, [member])
                if writes:
                    print(json.dumps([record.train_loss, [look.loss for look in record.validation], rows(member).tolist()]))
            """
        )
    )
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    one, two = (
        subprocess.run(
            [sys.executable, *launcher, str(script), str(llama_folder)], capture_output=True, text=True, check=False, env=environment
        )
        for launcher in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"])
    )
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    import json

    alone, shared = (json.loads(done.stdout.splitlines()[-1]) for done in (one, two))
    assert shared[0] == pytest.approx(alone[0], rel=1e-4) and shared[1] == pytest.approx(alone[1], rel=1e-4)
    assert float((torch.tensor(shared[2]) - torch.tensor(alone[2])).abs().mean()) < 1e-4


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_gradient_checkpointing_gives_the_same_prompt_from_less_memory(tmp_path: Path, architecture: str) -> None:
    backbone = backbone_at(str(save_tiny(architecture, tmp_path / architecture)))
    kept: dict[bool, int] = {}
    found = []
    for recompute in (False, True):
        member = a_member(backbone, gradient_checkpointing=recompute)
        sizes: list[int] = []

        def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel() if tensor is not backbone.head_weight else 0)  # the weights are there anyway
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            record = optimise(backbone, [member])
        kept[recompute] = sum(sizes)
        found.append((record, rows(member)))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1])
    assert kept[True] < kept[False] / 2
    assert not any("forward" in vars(module) for module in backbone._base.modules())
