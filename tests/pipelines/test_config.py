"""The launchpad's knobs: those of the task file, all of them, with their descriptions, bounds and choices."""

from pathlib import Path

import pytest
from deployment import a_deployment, write_task

from pipelines.config import TuneConfig
from prompt_core import PromptmillError, load_task
from prompt_core.methods import PromptSpec, TuneSpec
from prompt_core.text.spec import TextSpec


def test_every_knob_of_the_task_file_is_there_with_its_description() -> None:
    sections = TuneConfig.to_config_schema().as_field().config_type.fields
    for name, part in (("prompt", PromptSpec), ("tune", TuneSpec), ("text", TextSpec)):
        knobs = sections[name].config_type.fields
        assert knobs.keys() == part.model_fields.keys()
        for knob, field in part.model_fields.items():
            assert not knobs[knob].is_required
            assert knobs[knob].description.startswith(field.description or "")
    batch = sections["tune"].config_type.fields["batch_examples"]
    assert batch.description == "examples per step (at least 1, at most 65,536, usually 16)"


def test_what_is_given_replaces_what_the_file_says_and_the_rest_stays(tmp_path: Path) -> None:
    task = load_task(write_task(a_deployment(tmp_path), "t"))
    turned = TuneConfig(tune={"steps": 3, "decay": "linear"}, prompt={"tokens": 5}).applied_to(task)
    assert (turned.tune.steps, turned.tune.decay, turned.prompt.tokens) == (3, "linear", 5)
    assert turned.tune.learning_rate == task.tune.learning_rate and turned.folder == task.folder
    assert TuneConfig().applied_to(task) == task


def test_a_value_that_no_task_file_could_have_is_one_line(tmp_path: Path) -> None:
    task = load_task(write_task(a_deployment(tmp_path), "t"))
    with pytest.raises(PromptmillError, match=r"run config of tuned_prompt\[t\]: tune.steps: Input should be greater"):
        TuneConfig(tune={"steps": 0}).applied_to(task)
