"""What stands for a label: its name in words, and never the same for two of them."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import a_task, examples

from prompt_core.backbone import Backbone
from prompt_core.errors import PromptmillError
from prompt_core.task import TaskSpec
from prompt_core.tuning import tune
from prompt_core.tuning.build import describe

ROWS = examples(*[(f"The parcel came on day {i}", ("no-show", "no_show")[i % 2]) for i in range(8)])


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("Refund_not_showing_up", "Refund not showing up"),
        ("no-show", "no show"),
        ("a__b", "a b"),
        ("-1", "-1"),
        ("A-", "A-"),
        ("C--", "C--"),
        ("_", "_"),
        ("größte_Stadt", "größte Stadt"),
    ],
)
def test_a_label_is_its_name_in_words_with_its_sign(label: str, words: str) -> None:
    assert describe(a_task(), label) == words


def over(backbone: Backbone, **parts: Any) -> TaskSpec:
    assert backbone.origin
    tune_ = {"steps": 1, "max_tokens": 96, **parts.pop("tune", {})}
    return a_task(backbone.origin, template="{{ text }}", tune=tune_, **parts)


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("llama", {}),
        ("llama", {"tune": {"loss": "vocabulary"}}),
        ("llama", {"prompt": {"kind": "text"}}),
        ("bert", {}),
        ("bert", {"tune": {"loss": "pairs"}}),
        ("bert", {"prompt": {"kind": "text"}}),
    ],
)
def test_two_labels_with_the_same_words_are_refused_by_name(model: str, parts: dict[str, Any], request: pytest.FixtureRequest) -> None:
    backbone: Backbone = request.getfixturevalue(model)
    what = f'task t: labels: "no-show" and "no_show" are both said as "no show", the same tokens of {backbone.origin}'
    with pytest.raises(PromptmillError) as raised:
        tune(over(backbone, **parts), ROWS, None, backbone)
    assert str(raised.value) == f"{what}. Give each a description of its own in labels."


def test_with_descriptions_of_their_own_they_are_two_labels(llama: Backbone) -> None:
    task = over(llama, labels={"no-show": "did not come"})
    assert tune(task, ROWS, None, llama).manifest.labels == ("no-show", "no_show")


@pytest.mark.parametrize(
    ("model", "setting", "finding"),
    [
        ("llama", {"contrast": 0.5}, "task t: tune.contrast: is for an encoder, and tiny-llama is none. Leave it out."),
        ("llama", {"anchor_scale": 20.0}, "task t: tune.anchor_scale: is for an encoder, and tiny-llama is none. Leave it out."),
        ("bert", {"label_score": "sum"}, "task t: tune.label_score: is for a causal model, and tiny-bert is none. Leave it out."),
    ],
)
def test_a_setting_that_changes_nothing_on_the_backbone_is_refused(
    model: str, setting: dict[str, Any], finding: str, request: pytest.FixtureRequest
) -> None:
    backbone: Backbone = request.getfixturevalue(model)
    with pytest.raises(PromptmillError) as caught:
        tune(over(backbone, tune=setting), ROWS, None, backbone)
    assert str(caught.value) == finding
