"""What changed between two versions of a text prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import a_task, examples

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.errors import PromptmillError
from prompt_core.manifest import DataRecord, Manifest
from prompt_core.text.difference import difference
from prompt_core.text.prompt import Demonstration, TextPrompt
from prompt_core.tuning import tune


def says(backbone: Backbone, text: TextPrompt, **task: Any) -> TunedPrompt:
    """An artifact of these words."""
    told = a_task("tiny", template="Sort: {{ text }}", prompt={"kind": "text"}, **task)
    manifest = Manifest(
        name="t",
        kind="text",
        tokens=5,
        parameters=0,
        task=told.without_places("tiny"),
        labels=("a", "b"),
        max_new_tokens=None,
        backbone=backbone.identity,
        text=text,
        truncated_rows=0,
        data=DataRecord(train_rows=1, train="0", validation_rows=0, validation="0"),
        versions={},
        device="cpu",
    )
    return TunedPrompt(manifest, {})


def test_changed_words_labels_and_demonstrations_are_changed_lines(llama: Backbone) -> None:
    shown = (Demonstration(fields={"text": "It is late"}, answer="bad"),)
    read = {"user": "{{ text }}"}
    before = TextPrompt(template=({"system": "Sort it.\nBe brief."}, read), labels={"a": "good"})
    after = TextPrompt(template=({"system": "Sort it well.\nBe brief."}, read), labels={"a": "fine"}, demonstrations=shown)
    found = difference(says(llama, before), says(llama, after), ("t@1", "t@2")).splitlines()
    assert found[:2] == ["--- t@1", "+++ t@2"]
    changed = [line for line in found[2:] if line[0] in "+-"]
    assert changed == ["-Sort it.", "+Sort it well.", "-a: good", "+a: fine", "+[demonstration]", "+text: It is late", "+answer: bad"]
    assert " Be brief." in found


def test_prompts_that_say_the_same_differ_in_nothing(llama: Backbone) -> None:
    text = TextPrompt(template="Sort: {{ text }}")
    assert difference(says(llama, text), says(llama, text, description="another")) == ""


def test_words_of_the_task_count_as_the_prompts_own(llama: Backbone) -> None:
    text = TextPrompt(template="Sort: {{ text }}")
    found = difference(says(llama, text), says(llama, text, labels={"b": "broken"}))
    assert [line for line in found.splitlines()[2:] if line[0] in "+-"] == ["-b: b", "+b: broken"]


def test_a_prompt_without_words_is_refused_by_kind(llama: Backbone, tmp_path: Path) -> None:
    assert llama.origin
    task = a_task(llama.origin, template="Sort: {{ text }}", tune={"steps": 1})
    deep = tune(task, examples(("x", "a"), ("y", "b")), None, llama)
    with pytest.raises(PromptmillError, match=r"prompt t: is of kind deep, which has no words\. Compare text prompts\."):
        difference(deep, says(llama, TextPrompt(template="Sort: {{ text }}")))
