"""What READMEs say of the base, for each place where one can be."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from export_builders import published

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.backbone.locate import locate
from prompt_core.export import export
from prompt_core.export.base import PLACE, Base
from prompt_core.task import BackboneSpec


@pytest.fixture(scope="module")
def prompt(llama: Backbone) -> TunedPrompt:
    return published(llama).prompt


@pytest.fixture
def gguf() -> Path:
    file = locate(BackboneSpec(name="smollm2"), Path()).weights
    assert file is not None
    return file


def on(prompt: TunedPrompt, name: str, origin: Path | None = None, revision: str | None = None) -> TunedPrompt:
    """The prompt as if it were tuned on another base."""
    task = prompt.task.model_copy(update={"backbone": prompt.task.backbone.model_copy(update={"name": name})})
    backbone = prompt.manifest.backbone.model_copy(update={"name": name, "revision": revision})
    manifest = prompt.manifest.model_copy(update={"task": task, "backbone": backbone})
    return dataclasses.replace(prompt, manifest=manifest, origin=str(origin) if origin else None)


def test_a_hub_id_is_pinned_to_the_commit_that_the_prompt_was_tuned_on(prompt: TunedPrompt) -> None:
    base = Base.of(on(prompt, "org/model", revision="0a1b"))
    assert base.arguments == 'base = {"pretrained_model_name_or_path": "org/model", "revision": "0a1b"}'
    assert base.folder.endswith('base = snapshot_download("org/model", revision="0a1b")')
    assert base.arguments_note == base.folder_note == ""


def test_a_folder_and_a_gguf_file_are_places_to_fill_in(prompt: TunedPrompt, gguf: Path) -> None:
    base = Base.of(prompt)
    assert PLACE in base.arguments and base.folder == f'base = "{PLACE}"' and "tiny-llama" in base.folder_note
    assert prompt.manifest.backbone.weights in base.arguments_note
    base = Base.of(on(prompt, gguf.name, gguf))
    assert base.arguments == f'base = {{"pretrained_model_name_or_path": "{PLACE}", "gguf_file": "{gguf.name}"}}'
    assert "folder that holds the GGUF file" in base.arguments_note and "folder in safetensors" in base.folder_note


def test_an_embedded_model_is_found_in_its_package(prompt: TunedPrompt, gguf: Path) -> None:
    base, names = Base.of(on(prompt, "smollm2")), dict[str, Any]()
    exec(base.arguments, names)
    assert names["base"] == {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    assert PLACE in base.folder and gguf.name in base.folder_note


def test_a_readme_shows_no_name_where_it_loads_from_a_place(llama: Backbone, tmp_path: Path) -> None:
    for form in ("kv", "peft", "vllm"):
        export([published(llama, prompt={"kind": "soft"})], tmp_path / form, form)
        page = (tmp_path / form / "README.md").read_text()
        assert f'"{PLACE}"' in page and '"tiny-llama"' not in page and "NOTE" not in page and "BASE" not in page
