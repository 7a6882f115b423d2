"""Self-training: what a prompt says of inputs without labels, how it spreads, and the rounds that learn from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.nn.functional as F
from helpers import a_task, assert_equal_to_rounding, examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.metadata import tuning_metadata
from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.data import unlabelled_inputs
from prompt_core.errors import PromptmillError
from prompt_core.manifest import TuningRecord
from prompt_core.prompts import lower
from prompt_core.seen import why_seen
from prompt_core.task import TaskSpec
from prompt_core.tuning import tune, tune_fleet, tune_multitask
from prompt_core.tuning.contrastive import ContrastedAnchors
from prompt_core.tuning.gradient import optimise
from prompt_core.tuning.inputs import inputs_digest
from prompt_core.tuning.member import Member
from prompt_core.tuning.objective import Classification, embed_texts
from prompt_core.tuning.prepared import Prepared
from prompt_core.tuning.self_training import SelfTraining, spread, surest

WORDS = ("parcel", "letter", "invoice", "driver", "door", "street", "label", "scanner")
ROWS = [(f"The {word} is {'late' if i % 2 else 'broken'}", "late" if i % 2 else "broken") for i, word in enumerate(WORDS)]
TRAIN, VALIDATION = examples(*ROWS[:6]), examples(*ROWS[6:])
RECORD = TuningRecord(steps=0, kept_step=0, train_loss=(), validation=())
MORE = [f"{start} {word} {end}" for start in ("My", "Our", "That") for word in WORDS for end in ("came late", "broke again")]


def self_trained(
    backbone: Backbone, folder: Path, inputs: list[str] = MORE, *, data: dict[str, Any] | None = None, **tune: Any
) -> TaskSpec:
    folder.mkdir(exist_ok=True)
    pl.DataFrame({"text": inputs}).write_parquet(folder / "more.parquet")
    template = "Is it late or broken? {{ text }}\nIt is" if backbone.generates else "{{ text }}"
    given = {"path": "-", "target": "label", "unlabelled": "more.parquet", "test": 0.05, **(data or {})}
    return a_task(backbone.identity.name, template=template, folder=folder, data=given, tune={"steps": 4, "self_training": 2, **tune})


@pytest.fixture(params=["bert", "llama"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    found: Backbone = request.getfixturevalue(request.param)
    return found


def test_rounds_are_recorded_and_the_artifact_is_one_of_the_last(tmp_path: Path, backbone: Backbone) -> None:
    task = self_trained(backbone, tmp_path)
    prompt = tune(task, TRAIN, TRAIN.clear(), backbone)
    record = prompt.manifest.self_training
    assert record and len(record.rounds) == 2
    rounds, inputs = record.rounds, record.rounds[0].inputs
    assert record.summary() == f"round 2 of 2 kept, {rounds[1].labelled} of {inputs} inputs without labels learned from"
    assert len(MORE) * 0.8 < inputs <= len(MORE) and 0.8 * inputs <= rounds[1].labelled <= 0.8 * inputs + 2
    assert rounds[0].changed is None and rounds[1].changed is not None
    assert prompt.manifest.data.unlabelled_rows == inputs
    without = tune(self_trained(backbone, tmp_path, self_training=0), TRAIN, TRAIN.clear(), backbone)
    assert without.manifest.self_training is None and "self_training" not in json.loads(without.manifest.canonical())
    assert any(not torch.equal(prompt.tensors[name], without.tensors[name]) for name in prompt.tensors)
    prompt.save(tmp_path / "p")
    assert TunedPrompt.load(tmp_path / "p").predict(MORE, backbone) == prompt.predict(MORE, backbone)


@pytest.mark.parametrize(("contrast", "compared"), [(None, False), (0.5, True), (0.0, False)])
def test_examples_are_not_compared_unless_the_task_says_so(tmp_path: Path, bert: Backbone, contrast: float | None, compared: bool) -> None:
    task = self_trained(bert, tmp_path, contrast=contrast)
    assert isinstance(Prepared(task, (TRAIN, None), bert).part.objective, ContrastedAnchors) == compared
    alone = self_trained(bert, tmp_path, contrast=contrast, self_training=0)
    assert isinstance(Prepared(alone, (TRAIN, None), bert).part.objective, ContrastedAnchors) == (contrast != 0)


def test_the_order_of_the_inputs_and_an_interruption_change_nothing(tmp_path: Path, bert: Backbone) -> None:
    whole = tune(self_trained(bert, tmp_path), TRAIN, TRAIN.clear(), bert)
    other_order = self_trained(bert, tmp_path, MORE[::-1], checkpoint_every=1)

    class Interrupted(Exception):
        pass

    steps = 0

    def interrupt(step: Any) -> None:
        nonlocal steps
        steps += 1
        if steps == 6:  # in the second tuning
            raise Interrupted

    with pytest.raises(Interrupted):
        tune(other_order, TRAIN, TRAIN.clear(), bert, on_step=interrupt, checkpoints=tmp_path / "states")
    assert list((tmp_path / "states").iterdir())
    again = tune(other_order, TRAIN, TRAIN.clear(), bert, checkpoints=tmp_path / "states")
    assert again.digest == whole.digest and not list((tmp_path / "states").iterdir())


def test_a_round_starts_anew_and_learns_from_what_the_prompt_said(tmp_path: Path, backbone: Backbone) -> None:
    ready = Prepared(self_trained(backbone, tmp_path, steps=None), (TRAIN, None), backbone)
    start = {name: value.clone() for name, value in ready.prompt.tensors().items()}
    rounds = SelfTraining(ready, backbone)
    optimise(backbone, [Member([ready.part], ready.spec.model_copy(update={"steps": 3}), ready.generator)])
    tuned = {name: value.clone() for name, value in ready.prompt.tensors().items()}
    following = rounds.after(ready, RECORD)
    assert isinstance(following, Prepared)
    assert all(torch.equal(value, start[name]) for name, value in following.prompt.tensors().items())
    assert all(torch.equal(value, tuned[name]) for name, value in ready.prompt.tensors().items())
    labelled, train = ready.part.train, following.part.train
    assert train[: 4 * len(labelled)] == labelled * 4
    lessons = train[4 * len(labelled) :]
    assert list(following.lessons) == lessons
    inputs, prompt, classifier = ready.unlabelled(100), lower(backbone, ready.part.prompt.state()), ready.part.objective
    assert isinstance(classifier, Classification)
    with torch.no_grad():
        chances = classifier.scores_behind(prompt, inputs).softmax(-1)
        embedded = embed_texts(backbone, prompt, [example.input for example in [*labelled, *inputs]])
    given = F.one_hot(torch.tensor([example.target[0] for example in labelled]), 2).float()
    expected = spread(embedded, torch.cat([given, chances]))[len(labelled) :]
    assert [(lesson.input, lesson.target) for lesson in lessons] == [
        (inputs[n].input, (int(expected[n].argmax()),)) for n in surest(expected)
    ]
    assert len({lesson.input for lesson in lessons}) == len(lessons) and not {e.input for e in labelled} & {e.input for e in lessons}
    assert following.spec.steps == 80 and ready.spec == ready.task.tune
    assert isinstance(rounds.after(following, RECORD), Prepared)
    assert isinstance(rounds.after(following, RECORD), TunedPrompt)  # two rounds were asked for


def test_steps_left_out_suffice_for_one_round_over_all(tmp_path: Path, bert: Backbone) -> None:
    many = [f"case {number} is late" for number in range(4000)]
    ready = Prepared(self_trained(bert, tmp_path, many, steps=None), (TRAIN, None), bert)
    following = SelfTraining(ready, bert).after(ready, RECORD)
    assert isinstance(following, Prepared) and following.spec.steps == -(-len(following.part.train) // 16)


def test_of_rounds_with_validation_rows_the_one_that_gets_most_right_is_kept(tmp_path: Path, bert: Backbone) -> None:
    ready = Prepared(self_trained(bert, tmp_path), (TRAIN, VALIDATION), bert)
    rounds, good, bad = SelfTraining(ready, bert), ready.twin(), ready.twin()
    late_or_broken = sorted(ready.part.validation, key=lambda example: example.target)
    with torch.no_grad():
        embedded = embed_texts(bert, ready.prompt.state(), [example.input for example in late_or_broken])
        for twin, anchors in ((good, embedded), (bad, embedded.flip(0))):
            twin.part.objective.get_parameter("anchors").copy_(anchors)
    assert isinstance(rounds.after(bad, RECORD), Prepared) and isinstance(rounds.after(good, RECORD), Prepared)
    found = rounds.after(bad, RECORD)
    assert isinstance(found, TunedPrompt) and found.manifest.self_training
    assert found.manifest.self_training.kept == 1 and found.manifest.self_training.right == (0, 2, 0)
    assert torch.equal(found.tensors["anchors"], embedded) and "round 1 of 2 kept" in found.manifest.self_training.summary()
    assert found.manifest.self_training.summary().endswith("learned from; validation rows right, from round 0: 0, 2, 0")


def test_a_round_that_fails_leaves_the_best_before_and_the_first_its_error(tmp_path: Path, bert: Backbone) -> None:
    error = PromptmillError("step 3", "the training loss is nan", "Lower tune.learning_rate.")
    ready = Prepared(self_trained(bert, tmp_path), (TRAIN, None), bert)
    assert SelfTraining(ready, bert).after(ready, error) is error
    rounds = SelfTraining(ready, bert)
    following = rounds.after(ready, RECORD)
    assert isinstance(following, Prepared)
    found = rounds.after(following, error)
    assert isinstance(found, TunedPrompt) and found.manifest.self_training and found.manifest.self_training.kept == 0
    assert found.manifest.self_training.summary() == "round 0 of 1 kept"
    assert all(torch.equal(found.tensors[name], value) for name, value in ready.prompt.tensors().items())


def test_the_assets_metadata_says_which_round_was_kept(tmp_path: Path, bert: Backbone) -> None:
    prompt = tune(self_trained(bert, tmp_path), TRAIN, None, bert)
    said = tuning_metadata(prompt, 1.0)["self-training"]
    assert prompt.manifest.self_training and said == prompt.manifest.self_training.summary() and said.startswith("round 2 of 2 kept")
    assert "self-training" not in tuning_metadata(tune(self_trained(bert, tmp_path, self_training=0), TRAIN, None, bert), 1.0)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "pairs", "head": "logistic"},
        {"calibrate": True},
        {
            "steps": None,
            "search": {"trials": 2, "together": 2, "folds": 2, "space": {"tune.learning_rate": [0.01, 0.02], "tune.steps": [2, 4]}},
        },
    ],
)
def test_other_losses_calibration_and_a_search_go_with_it(tmp_path: Path, bert: Backbone, settings: dict[str, Any]) -> None:
    task = self_trained(bert, tmp_path, **settings)
    prompt = tune(task, TRAIN, None, bert)
    manifest = prompt.manifest
    assert manifest.self_training and manifest.self_training.kept == 2
    assert manifest.data.unlabelled_rows == len(unlabelled_inputs(task))
    assert ("label_bias" in prompt.tensors) == ("calibrate" in settings) and ("head_bias" in prompt.tensors) == ("head" in settings)
    assert (manifest.search is not None) == ("search" in settings)
    assert set(prompt.predict(MORE, bert)) <= {"late", "broken"}


def test_a_fleet_trains_each_as_alone(tmp_path: Path, bert: Backbone) -> None:
    one, plain = self_trained(bert, tmp_path, self_training=1), self_trained(bert, tmp_path, self_training=0)
    results = tune_fleet([one, plain], [(TRAIN, None)] * 2, bert)
    for task, found in zip((one, plain), results, strict=True):
        assert isinstance(found, TunedPrompt)
        alone = tune(task, TRAIN, None, bert)
        assert found.manifest.self_training == alone.manifest.self_training
        for name, tensor in alone.tensors.items():
            assert_equal_to_rounding(found.tensors[name], tensor)


def test_inputs_that_may_be_test_rows_leave_nothing(tmp_path: Path, bert: Backbone) -> None:
    pl.DataFrame({"text": MORE, "label": ["late", "broken"] * (len(MORE) // 2)}).write_csv(tmp_path / "test.csv")
    task = self_trained(bert, tmp_path, data={"test_path": "test.csv"})
    with pytest.raises(PromptmillError, match=r"task t: data.unlabelled: no input is left without those that may be test"):
        tune(task, TRAIN, None, bert)


def test_inputs_that_became_test_rows_are_left_out_and_who_read_them_has_seen_test_rows(tmp_path: Path, bert: Backbone) -> None:
    task = self_trained(bert, tmp_path, data={"test_path": "test.csv"}, self_training=1, calibrate=True)
    held_out = pl.DataFrame({"text": ["The box is late", "The bag is broken"], "label": ["late", "broken"]})
    held_out.write_csv(tmp_path / "test.csv")
    before, prompt = inputs_digest(task, (TRAIN, None), bert), tune(task, TRAIN, None, bert)
    assert why_seen(prompt, task, TRAIN, TRAIN.clear()) == ""
    pl.concat([held_out, pl.DataFrame({"text": MORE[:5], "label": ["late"] * 5})]).write_csv(tmp_path / "test.csv")
    assert prompt.manifest.data.unlabelled_rows == len(MORE)
    assert set(unlabelled_inputs(task)["text"]) == set(MORE[5:])
    assert inputs_digest(task, (TRAIN, None), bert) != before
    assert "inputs without labels" in why_seen(prompt, task, TRAIN, TRAIN.clear())


def test_inputs_that_have_a_label_are_left_out(tmp_path: Path, bert: Backbone) -> None:
    inputs = [*MORE, *TRAIN["text"], *VALIDATION["text"]]
    more, all_of_them = (self_trained(bert, tmp_path / name, texts) for name, texts in (("more", MORE), ("all", inputs)))
    counts = []
    for task in (more, all_of_them):
        ready = Prepared(task, (TRAIN, VALIDATION), bert)
        following = SelfTraining(ready, bert).after(ready, RECORD)
        assert isinstance(following, Prepared)
        counts.append(following.found["self_training"].rounds[0].inputs)
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("parts", "finding"),
    [
        ({"objective": "generate"}, "tune.self_training is for objective 'classify', this task's is 'generate'"),
        ({"data": {"path": "-", "target": "label"}}, "tune.self_training needs inputs to label; name a file of them in data.unlabelled"),
        ({"prompt": {"kind": "text"}}, "tune.self_training is not for prompt.kind: text; leave it to soft and deep prompts"),
        ({"tune": {"self_training": 1, "search": {"final": "average"}}}, "tune.self_training beside tune.search.final: average"),
        ({"tune": {"self_training": 11}}, "tune.self_training: Input should be less than or equal to 10"),
    ],
)
def test_what_does_not_fit_is_one_line(parts: dict[str, Any], finding: str) -> None:
    given = {"data": {"path": "-", "target": "label", "unlabelled": "u.csv"}, "tune": {"self_training": 1}, **parts}
    with pytest.raises(PromptmillError) as raised:
        a_task(**given)
    assert finding in str(raised.value) and "\n" not in str(raised.value)


def test_several_tasks_with_one_prompt_have_no_rounds(tmp_path: Path, llama: Backbone) -> None:
    with pytest.raises(PromptmillError, match=r"task t: tune.self_training: asks for a self-training, which several tasks"):
        tune_multitask([self_trained(llama, tmp_path)], [(TRAIN, None)], llama)


def clusters(*sizes: int) -> Tensor:
    """Unit vectors, each near the axis of its cluster."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(16).repeat_interleave(torch.tensor([*sizes, *[0] * (16 - len(sizes))]), 0)
    return F.normalize(centres + 0.05 * torch.randn(centres.shape, generator=generator), dim=-1)


def test_neighbours_that_agree_overrule_the_odd_one_out() -> None:
    said = torch.cat([torch.tensor([[0.9, 0.1]]).repeat(20, 1), torch.tensor([[0.1, 0.9]]).repeat(20, 1)])
    said[3] = torch.tensor([0.3, 0.7])
    found = spread(clusters(20, 20), said)
    assert found.argmax(-1).tolist() == [0] * 20 + [1] * 20


@given(st.integers(2, 40), st.integers(1, 5), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_spreading_gives_chances_and_follows_the_closed_form(rows: int, labels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    embeddings = F.normalize(torch.randn(rows, 8, generator=generator), dim=-1)
    said = torch.randn(rows, labels, generator=generator).mul(2).softmax(-1)
    found = spread(embeddings, said)
    assert found.shape == said.shape and float(found.min()) >= 0
    assert_equal_to_rounding(found.sum(-1), torch.ones(rows))
    x, start = embeddings.double().numpy(), said.double().numpy()
    distance = np.square(x[:, None] - x[None]).sum(-1)
    near = distance + 1e9 * np.eye(rows)
    weights = np.zeros((rows, rows))
    for i, own in enumerate(np.argsort(near, axis=1)[:, : min(10, rows - 1)]):
        weights[i, own] = np.exp(-distance[i, own] / 0.1)
    weights = (weights + weights.T) / 2
    scale = weights.sum(1) ** -0.5
    exact = 0.5 * np.linalg.solve(np.eye(rows) - 0.5 * scale[:, None] * weights * scale[None], start)
    assert float((found - torch.from_numpy(exact / exact.sum(1, keepdims=True))).abs().max()) < 1e-5


@given(st.lists(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), min_size=1, max_size=30))
def test_the_surest_of_each_label_are_taken(rows: list[list[float]]) -> None:
    chances = torch.tensor(rows)
    taken = surest(chances)
    said = chances.argmax(-1).tolist()
    assert taken == sorted(set(taken))
    for label in set(said):
        own = [number for number, each in enumerate(said) if each == label]
        left = [number for number in own if number not in taken]
        assert len(left) == len(own) // 5
        kept = [float(chances[number].max()) for number in own if number in taken]
        assert all(float(chances[number].max()) <= min(kept) for number in left)
