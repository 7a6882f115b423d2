"""Retuning: from the task's own start and from the live prompt, side by side; and when nothing has to be tuned at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
from helpers import a_task, examples

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.errors import PromptmillError
from prompt_core.manifest import Validation
from prompt_core.task import TaskSpec
from prompt_core.tuning import Order, Retuned, inputs_digest, is_made_of, retune_fleet, tune
from prompt_core.tuning.prepared import Prepared
from prompt_core.tuning.retune import better

WORDS = ["parcel", "letter", "invoice", "driver", "door", "street", "label", "scanner", "depot", "truck"]
TRAIN = examples(*[(f"The {word} is {'late' if i % 2 else 'broken'}", "late" if i % 2 else "broken") for i, word in enumerate(WORDS)])
VALIDATION = examples(("My box is late", "late"), ("My box is broken", "broken"))
SIDES = (TRAIN, VALIDATION)
MORE = (pl.concat([TRAIN, examples(("The desk is late", "late"))]), VALIDATION)


def a_member(backbone: Backbone, prompt: dict[str, Any] | None = None, **tune: Any) -> TaskSpec:
    settings = {"steps": 6, "batch_examples": 4, "validate_every": 2, "learning_rate": 0.05, **tune}
    return a_task(backbone.identity.name, prompt=prompt or {"kind": "deep", "tokens": 3}, tune=settings)


def parted(task: TaskSpec, **shares: Any) -> TaskSpec:
    return task.model_copy(update={"data": task.data.model_copy(update=shares)})


def retuned(order: Order, backbone: Backbone) -> Retuned:
    (found,) = retune_fleet([order], backbone)
    assert isinstance(found, Retuned)
    return found


def test_a_live_prompt_that_leads_further_is_what_the_new_one_starts_from(bert: Backbone) -> None:
    task, sides = a_member(bert, learning_rate=0.02), (TRAIN, TRAIN)  # a random model learns rows by heart, no more
    live = tune(task, *sides, bert)
    found = retuned(Order(task, sides, live), bert)
    cold, warm = found.losses["cold"], found.losses["warm"]
    assert warm < cold and found.start == "warm"
    assert found.prompt.manifest.started_from == live.digest
    assert found.why == f"validation loss {cold:.4f} from the task's own start, {warm:.4f} from the live prompt"


def test_a_live_prompt_that_leads_nowhere_loses_and_leaves_no_trace(bert: Backbone) -> None:
    task = a_member(bert)
    live = tune(task, *SIDES, bert)
    swapped = live.tensors | {"anchors": live.tensors["anchors"].flip(0), "keys": torch.full_like(live.tensors["keys"], 5.0)}
    found = retuned(Order(task, SIDES, replace(live, tensors=swapped)), bert)
    assert found.start == "cold" and found.prompt.manifest.started_from is None
    assert found.losses["cold"] < found.losses["warm"]


def test_a_loss_that_is_not_finite_never_wins(bert: Backbone) -> None:
    good = tune(a_member(bert), *SIDES, bert)

    def with_losses(*losses: float | None) -> TunedPrompt:
        looks = tuple(Validation(step=step, loss=loss) for step, loss in enumerate(losses, 1))
        record = good.manifest.tuning.model_copy(update={"validation": looks})
        return replace(good, manifest=good.manifest.model_copy(update={"tuning": record}))

    cases = (((None,), (2.0,), "warm"), ((2.0,), (None,), "cold"), ((None, 1.0), (2.0,), "cold"), ((3.0,), (None, 2.0), "warm"))
    for cold, warm, start in cases:
        found = better(with_losses(*cold), with_losses(*warm), "")
        assert isinstance(found, Retuned) and found.start == start


def test_a_warm_start_takes_label_anchors_with_it_where_labels_are_the_same(bert: Backbone, tmp_path: Any) -> None:
    live = tune(a_member(bert), *SIDES, bert)
    live.save(tmp_path / "live")
    warm = a_member(bert, prompt={"kind": "deep", "start": "prompt", "start_from": str(tmp_path / "live")})
    assert torch.equal(Prepared(warm, SIDES, bert).part.objective.anchors, live.tensors["anchors"])
    other = (examples(("late", "late"), ("gone", "gone")), None)
    assert not torch.equal(Prepared(warm, other, bert).part.objective.anchors, live.tensors["anchors"])


def test_where_the_live_prompt_is_no_start_the_reason_is_said(bert: Backbone) -> None:
    task = a_member(bert)
    live = tune(parted(task, test=0.1, validation=0.1), *SIDES, bert)
    joined = tune(parted(task, test=0.1, validation=0.1), TRAIN, None, bert)  # as after a search, on all rows
    for order, reason in (
        (Order(task, SIDES), "no prompt is live"),
        (Order(task, (TRAIN, None), live), "there are no validation rows to choose a start by"),
        (Order(a_member(bert, prompt={"kind": "deep", "tokens": 5}), SIDES, live), "the live prompt does not fit"),
        (Order(parted(task, test=0.4), MORE, live), "may have seen rows that are held out now: data.test and data.validation take 0.55 of"),
        (Order(parted(task, test_path="t.csv"), MORE, live), "test rows are a file, and it was tuned on other rows"),
        (Order(parted(task, test=0.1, validation=0.1), MORE, joined), "take 0.2 of the rows now, 0.1 were held out then"),
    ):
        found = retuned(order, bert)
        assert found.start == "cold" and reason in found.why


def test_a_task_that_cannot_be_tuned_is_an_error_of_its_own(bert: Backbone) -> None:
    good, bad = retune_fleet([Order(a_member(bert), SIDES), Order(a_member(bert, prompt={"kind": "soft"}), SIDES)], bert)
    assert isinstance(good, Retuned) and isinstance(bad, PromptmillError)


def test_a_prompt_is_known_by_what_it_was_made_of(bert: Backbone) -> None:
    task = a_member(bert)
    made_of, more = inputs_digest(task, SIDES, bert), (examples(("a new text", "late"), *TRAIN.select("text", "label").rows()), VALIDATION)
    assert inputs_digest(task.model_copy(update={"schedule": "0 3 * * 1"}), SIDES, bert) == made_of
    assert inputs_digest(a_member(bert, seed=1), SIDES, bert) != made_of
    assert inputs_digest(task, more, bert) != made_of
    live = tune(task, *SIDES, bert)
    warm = retuned(Order(task, SIDES, live), bert).prompt
    about = (bert.identity, bert.device.type)
    for prompt in (live, warm):
        assert isinstance(prompt, TunedPrompt)
        assert is_made_of(prompt, task, SIDES, *about)
        assert not is_made_of(prompt, task, more, *about)
        assert not is_made_of(prompt, a_member(bert, seed=1), SIDES, *about)


def test_trained_tokens_are_those_of_every_round_of_self_training(bert: Backbone, tmp_path: Path) -> None:
    pl.DataFrame({"text": [f"Our {word} is here" for word in WORDS]}).write_csv(tmp_path / "more.csv")
    data = {"path": "-", "target": "label", "unlabelled": "more.csv", "test": 0.05}
    tokens = []
    for rounds in (0, 1, 2):
        task = a_task(bert.identity.name, folder=tmp_path, data=data, tune={"steps": 4, "batch_examples": 4, "self_training": rounds})
        tokens.append(retuned(Order(task, SIDES), bert).tokens)
    assert 1.5 * tokens[0] < tokens[1] and 1.25 * tokens[1] < tokens[2]
