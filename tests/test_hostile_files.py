"""Task files and prompt folders from outside, changed at random or with care: a result or one clear line, nothing else.

PROMPTMILL_HARDNESS=full gives 10,000 inputs to each parser.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from helpers import a_task
from hypothesis import given
from hypothesis import strategies as st
from mutations import changed, json_values, many_inputs, scratched
from test_artifact import a_manifest, sign

from prompt_core.artifact import TunedPrompt
from prompt_core.errors import PromptmillError
from prompt_core.task_file import load_task, parse_task

pytestmark = pytest.mark.hardness
REPOSITORY = Path(__file__).parents[1]
TASK: dict[str, Any] = {
    "name": "reply",
    "backbone": {"name": "smollm2", "dtype": "float32", "device": "cpu"},
    "data": {"path": "replies.csv", "target": "reply", "test": 0.3},
    "objective": "generate",
    "template": [{"system": "Be kind."}, {"user": "{{ message }}"}],
    "labels": {"a": "first"},
    "prompt": {"kind": "deep", "tokens": 8, "start": "text", "text": "kind"},
    "tune": {"steps": 8, "learning_rate": 0.01},
    "evaluate": {"metrics": ["chrf"], "few_shot": 0},
    "gate": {"metric": "chrf", "min_gain": 2.0},
    "schedule": "0 3 * * 1",
}
TENSORS = safetensors.torch.save({"embeddings": torch.ones(2, 3)})


def one_line(error: PromptmillError, where: str) -> None:
    message = str(error)
    assert message.startswith(where) and "\n" not in message and len(message) < 2000, message


@given(changed(TASK) | st.dictionaries(st.text(max_size=8), json_values, max_size=4))
@many_inputs
def test_any_task_is_read_or_refused_in_one_line(document: dict[str, Any]) -> None:
    try:
        task = parse_task(document, "here", Path())
        assert parse_task(task.without_places("tiny"), "there", Path()).name == task.name
        json.dumps(task.without_places("tiny"), allow_nan=False)
    except PromptmillError as error:
        one_line(error, "here: ")


@given(st.data())
@many_inputs
def test_any_task_file_is_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "task.yaml"
    path.write_bytes(
        data.draw(scratched(yaml.safe_dump(TASK).encode()) | scratched((REPOSITORY / "tasks/support_reply.yaml").read_bytes()))
    )
    try:
        load_task(path)
    except PromptmillError as error:
        one_line(error, f"{path}: ")


@given(st.data())
@many_inputs
def test_any_manifest_is_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "hostile"
    folder.mkdir(exist_ok=True)
    canonical = a_manifest(task=a_task(objective="generate").without_places("tiny")).canonical()
    document = json.dumps(data.draw(changed(json.loads(canonical)))).encode()
    (folder / "manifest.json").write_bytes(data.draw(st.just(document) | scratched(canonical)))
    (folder / "prompt.safetensors").write_bytes(data.draw(st.just(TENSORS) | scratched(TENSORS)))
    sign(folder)
    try:
        prompt = TunedPrompt.load(folder)
    except PromptmillError as error:
        one_line(error, f"{folder}/")
        return
    try:
        assert len(prompt.digest) == 64 and prompt.task.name
    except PromptmillError as error:
        one_line(error, f"prompt {prompt.name}: task: ")


LAUGHS = "\n".join([f"a0: &a0 [{', '.join(['x'] * 9)}]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))])
MERGES = "\n".join(["m0: &m0 {a: 1}", *(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}" for n in range(1, 30))])


@pytest.mark.parametrize(
    "content",
    [
        f"{LAUGHS}\nname: *a29",
        f"{LAUGHS}\nname: t\nlabels: *a29",
        f"{LAUGHS}\nname: t\nbackbone: *a29\ntemplate: *a29",
        f"{MERGES}\nname: t",
        "name: &n [*n]",
        "name: " + "[" * 100_000,
        "name: " + "{" * 100_000,
        "name: " + "9" * 100_000,
        "name: " + "{a: " * 10_000,
        "name: 0x" + "f" * 100_000,
        "name: 1" + ":59" * 50_000,
        "name: !!python/object/apply:os.system ['true']",
        "name: !!binary ////",
        "name: !!timestamp 2026-99-99",
        "? [a, b]\n: c",
        "name: " + "x" * 10**6,
    ],
    ids=lambda content: content[:12].replace("\n", " ") + str(len(content)),
)
def test_a_task_file_that_is_made_to_hurt_is_refused_at_once(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(content)
    began = time.monotonic()
    with pytest.raises(PromptmillError) as caught:
        load_task(path)
    assert time.monotonic() - began < 5
    one_line(caught.value, f"{path}")
