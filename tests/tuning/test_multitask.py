"""Multitask prompt tuning: tasks share a prompt, each has a factor of its own and ends with an ordinary soft prompt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import a_task, examples

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.errors import PromptmillError
from prompt_core.task import TaskSpec
from prompt_core.tuning import tune_multitask

WORDS = ["parcel", "letter", "invoice", "driver", "door", "street"]
STATES = examples(*[(f"The {word} is {'late' if i % 2 else 'broken'}", "late" if i % 2 else "broken") for i, word in enumerate(WORDS)])
MOODS = examples(*[(f"The {word} is {'fine' if i % 2 else 'awful'}", "glad" if i % 2 else "sad") for i, word in enumerate(WORDS)])


def a_part(backbone: Backbone, name: str, **prompt: Any) -> TaskSpec:
    tune = {"steps": 20, "batch_examples": 6, "validate_every": 5, "learning_rate": 0.05}
    return a_task(backbone.identity.name, name=name, template="{{ text }} is", prompt={"kind": "soft", "tokens": 4, **prompt}, tune=tune)


def test_tasks_learn_together_and_end_with_a_soft_prompt_each(tmp_path: Path, llama: Backbone) -> None:
    tasks = [a_part(llama, "states"), a_part(llama, "moods")]
    found = tune_multitask(tasks, [(STATES, STATES), (MOODS, MOODS)], llama)
    again = tune_multitask(tasks, [(STATES, STATES), (MOODS, MOODS)], llama)
    assert [prompt.digest for prompt in found] == [prompt.digest for prompt in again]
    losses = found[0].manifest.tuning.train_loss
    assert losses == found[1].manifest.tuning.train_loss and sum(losses[-3:]) < 0.8 * sum(losses[:3])
    # The rows differ by a factor of rank one.
    ratio = found[0].tensors["embeddings"] / found[1].tensors["embeddings"]
    singular = torch.linalg.svdvals(ratio.double())
    assert not torch.equal(*(prompt.tensors["embeddings"] for prompt in found)) and float(singular[1] / singular[0]) < 1e-3
    found[1].save(tmp_path / "moods")
    assert TunedPrompt.load(tmp_path / "moods").predict(["The box is fine"], llama)[0] in {"glad", "sad"}


@pytest.mark.parametrize(
    ("prompt", "finding"),
    [
        ({"kind": "deep"}, "task b: prompt: is not a plain soft prompt"),
        ({"tokens": 5}, "task b: prompt.tokens: has 5 tokens, that of a has 4"),
    ],
)
def test_a_task_that_does_not_fit_is_named(llama: Backbone, prompt: dict[str, Any], finding: str) -> None:
    with pytest.raises(PromptmillError, match=re.escape(finding)):
        tune_multitask([a_part(llama, "a"), a_part(llama, "b", **prompt)], [(STATES, None), (MOODS, None)], llama)


def test_tasks_that_would_be_tuned_otherwise_than_their_files_say_are_refused(llama: Backbone) -> None:
    slower = a_part(llama, "b").model_copy(update={"tune": a_part(llama, "b").tune.model_copy(update={"learning_rate": 0.01})})
    with pytest.raises(PromptmillError, match=r"task b: tune: is not that of a, with which it is tuned\. Give all tasks the same"):
        tune_multitask([a_part(llama, "a"), slower], [(STATES, None), (MOODS, None)], llama)
