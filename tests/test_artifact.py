"""Artifacts: bytes that depend on content alone, a digest over all of it, and refusal of whatever was changed."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from helpers import a_task
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_core.artifact import TunedPrompt
from prompt_core.errors import PromptmillError, Unreachable
from prompt_core.export import Published
from prompt_core.export.folder import export_folder
from prompt_core.manifest import BackboneIdentity, DataRecord, Manifest, TuningRecord, Validation


def a_manifest(**changed: Any) -> Manifest:
    content: dict[str, Any] = {
        "name": "t",
        "kind": "soft",
        "tokens": 2,
        "parameters": 6,
        "task": a_task(objective="generate").without_places("tiny"),
        "labels": (),
        "max_new_tokens": 8,
        "backbone": BackboneIdentity(name="tiny", revision=None, architecture="A", dtype="float32", weights="w", tokenizer="k"),
        "tuning": TuningRecord(steps=2, kept_step=1, train_loss=(1.5, 0.1 + 0.2), validation=(Validation(step=1, loss=1.25),)),
        "truncated_rows": 0,
        "data": DataRecord(train_rows=1, train="d", validation_rows=0, validation="e"),
        "versions": {"torch": "2", "python": "3.11"},
        "device": "cpu",
    }
    return Manifest.model_validate(content | changed)


def a_prompt(origin: str | None = None, **changed: Any) -> TunedPrompt:
    return TunedPrompt(a_manifest(**changed), {"embeddings": torch.arange(6.0).view(2, 3)}, origin)


def saved(folder: Path, prompt: TunedPrompt | None = None) -> Path:
    (prompt or a_prompt()).save(folder / "p")
    return folder / "p"


def sign(folder: Path) -> None:
    """Write the digest that fits the folder's bytes, as whoever tampers with care would."""
    parts = (hashlib.sha256((folder / name).read_bytes()).digest() for name in ("manifest.json", "prompt.safetensors"))
    (folder / "digest").write_text(hashlib.sha256(b"promptmill/1" + b"".join(parts)).hexdigest())


def refused(folder: Path) -> str:
    with pytest.raises(PromptmillError) as caught:
        TunedPrompt.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    prompt = a_prompt(origin="/models/tiny")
    loaded = TunedPrompt.load(saved(tmp_path, prompt))
    assert (loaded.manifest, loaded.digest, loaded.origin) == (prompt.manifest, prompt.digest, "/models/tiny")
    assert torch.equal(loaded.tensors["embeddings"], prompt.tensors["embeddings"])
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == ["digest", "manifest.json", "origin.json", "prompt.safetensors"]
    assert loaded.task.objective == "generate"


def test_the_seconds_of_a_ladder_are_kept_beside_what_is_hashed(tmp_path: Path) -> None:
    loaded = TunedPrompt.load(saved(tmp_path, replace(a_prompt(), seconds={"text": 3.5})))
    assert (loaded.seconds, loaded.origin, loaded.digest) == ({"text": 3.5}, None, a_prompt().digest)


def test_saving_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        a_prompt().save(tmp_path / folder)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_where_the_backbone_was_found_is_no_content() -> None:
    assert a_prompt(origin="/here").digest == a_prompt().digest
    assert replace(a_prompt(), seconds={"text": 3.5}).digest == a_prompt().digest


manifests = st.fixed_dictionaries(
    {
        "name": st.text(max_size=9),
        "tokens": st.integers(1, 9),
        "labels": st.lists(st.text(max_size=9), max_size=3).map(tuple),
        "versions": st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3),
        "task": st.just(a_task().without_places("tiny")),
        "device": st.sampled_from(["cpu", "cuda"]),
    }
)


@given(manifests, manifests)
@settings(max_examples=60, deadline=None)
def test_equal_content_and_only_that_has_one_digest(one: dict[str, Any], other: dict[str, Any]) -> None:
    again = a_manifest(**{key: one[key] for key in reversed(one)} | {"versions": dict(reversed(one["versions"].items()))})
    assert a_manifest(**one).canonical() == again.canonical()
    assert Manifest.model_validate_json(again.canonical()).canonical() == again.canonical()
    assert (a_prompt(**one).digest == a_prompt(**other).digest) == (one == other)


@pytest.mark.parametrize("name", ["manifest.json", "prompt.safetensors", "digest"])
def test_a_changed_byte_is_found(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    assert re.match(
        re.escape(f"{path.parent}: the content's digest is ") + ".* It was changed; restore it or tune again", refused(path.parent)
    )


@pytest.mark.parametrize("name", ["manifest.json", "prompt.safetensors", "digest"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path) / name
    path.unlink()
    assert refused(path.parent) == f"{path}: cannot be read (No such file or directory). A prompt is a folder that `promptmill tune` wrote."


def test_a_pickle_that_is_called_safetensors_is_not_opened(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    (folder / "prompt.safetensors").write_bytes(pickle.dumps({"embeddings": [1.0]}))
    sign(folder)
    assert f"{folder / 'prompt.safetensors'}: is not safetensors (" in refused(folder)


@pytest.mark.parametrize("name", ["manifest.json", "digest", "origin.json"])
def test_a_huge_file_is_not_read(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path)
    with (folder / name).open("wb") as file:
        file.truncate(17 * 2**20)
    assert f"{folder / name}: is larger than 16777216 bytes" in refused(folder)


@pytest.mark.parametrize(
    ("content", "finding"),
    [
        ("{", "is not a manifest (Invalid JSON"),
        ("[" * 100_000, "is not a manifest (Invalid JSON"),
        ("{}", "is not a manifest (name: Field required)"),
        (
            json.dumps(a_manifest().model_dump(mode="json") | {"format": "promptmill/9"}),
            "is not a manifest (format: Input should be 'promptmill/1')",
        ),
    ],
)
def test_a_manifest_that_is_none_is_refused_even_with_its_digest(tmp_path: Path, content: str, finding: str) -> None:
    folder = saved(tmp_path)
    (folder / "manifest.json").write_text(content)
    sign(folder)
    assert refused(folder).startswith(f"{folder / 'manifest.json'}: {finding}")


@pytest.mark.parametrize("content", ["{", "[]", "{}", "null", '"x"', "[" * 100_000, '{"backbone": "x", "seconds": 3}'])
def test_a_damaged_note_of_the_backbones_place_is_one_line(tmp_path: Path, content: str) -> None:
    folder = saved(tmp_path)
    (folder / "origin.json").write_text(content)
    assert refused(folder).startswith(f"{folder / 'origin.json'}: does not say where the backbone is. Remove it")


@pytest.mark.parametrize(
    ("tensors", "finding"),
    [
        ({"embeddings": torch.full((2, 3), float("nan"))}, "tensor embeddings has values that are not finite"),
        ({"embeddings": torch.full((2, 3), float("inf"))}, "tensor embeddings has values that are not finite"),
        ({"keys": torch.ones(1)}, "holds ['keys'], a soft prompt has ['embeddings']"),
        ({"embeddings": torch.ones(2, 3), "more": torch.ones(1)}, "holds ['embeddings', 'more'], a soft prompt has ['embeddings']"),
        ({"embeddings": torch.ones(3, 3)}, "tensor embeddings is float32 [3, 3], the manifest says 2 tokens"),
        ({"embeddings": torch.ones(6)}, "tensor embeddings is float32 [6], the manifest says 2 tokens"),
        ({"embeddings": torch.ones(2, 3, dtype=torch.int32)}, "tensor embeddings is int32 [2, 3], the manifest says 2 tokens"),
    ],
)
def test_tensors_that_do_not_fit_the_manifest_are_refused_even_with_their_digest(
    tmp_path: Path, tensors: dict[str, torch.Tensor], finding: str
) -> None:
    folder = saved(tmp_path)
    (folder / "prompt.safetensors").write_bytes(safetensors.torch.save(tensors))
    sign(folder)
    assert f"{folder / 'prompt.safetensors'}: {finding}" in refused(folder)


@pytest.mark.parametrize(
    ("tensors", "finding"),
    [
        ({"anchors": torch.ones(3, 4)}, "tensor anchors is float32 [3, 4], the manifest says 2 labels"),
        ({"head_weights": torch.ones(2, 4)}, "holds ['embeddings', 'head_weights'], a soft prompt has ['embeddings']"),
        ({"head_weights": torch.ones(2, 4), "head_bias": torch.ones(3)}, "tensor head_bias is float32 [3], the manifest says 2 labels"),
        (
            {"head_weights": torch.ones(2, 4).double(), "head_bias": torch.ones(2)},
            "tensor head_weights is float64 [2, 4], the manifest says 2 labels",
        ),
        (
            {"anchors": torch.ones(2, 4), "head_weights": torch.ones(2, 4), "head_bias": torch.ones(2)},
            "holds ['anchors', 'embeddings', 'head_bias', 'head_weights'], a soft prompt has ['embeddings']",
        ),
        ({"label_bias": torch.tensor([0.0, torch.inf])}, "tensor label_bias has values that are not finite"),
        ({"label_bias": torch.ones(2, 1)}, "tensor label_bias is float32 [2, 1], the manifest says 2 labels"),
    ],
)
def test_heads_that_do_not_fit_the_labels_are_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], finding: str) -> None:
    folder = saved(tmp_path, a_prompt(labels=("a", "b"), task=a_task().without_places("tiny"), max_new_tokens=None))
    (folder / "prompt.safetensors").write_bytes(safetensors.torch.save({"embeddings": torch.ones(2, 3), **tensors}))
    sign(folder)
    assert f"{folder / 'prompt.safetensors'}: {finding}" in refused(folder)


def test_a_task_that_this_version_does_not_know_is_one_line() -> None:
    with pytest.raises(PromptmillError, match=r'prompt t: task: objectives: unknown field. Did you mean "objective"'):
        _ = a_prompt(task=a_task().without_places("tiny") | {"objectives": ["classify"]}).task


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    folder = saved(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for write in (lambda: a_prompt(name="u").save(folder), lambda: export_folder(Published(a_prompt(name="u"), 1, {}), folder)):
        with pytest.raises(PromptmillError, match=re.escape(f"{folder}: exists already. Name a folder that does not")):
            write()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (
        lambda: a_prompt().save(tmp_path / "file" / "p"),
        lambda: export_folder(Published(a_prompt(), 1, {}), tmp_path / "file" / "p"),
    ):
        with pytest.raises(PromptmillError, match=r"file/p: cannot be written \(.*\). Name a folder that you can write to"):
            write()


def test_a_save_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    impossible = TunedPrompt(a_manifest(), {"embeddings": torch.ones(2, 3).to_sparse()})
    for write in (lambda: impossible.save(tmp_path / "p"), lambda: export_folder(Published(impossible, 1, {}), tmp_path / "p")):
        with pytest.raises(ValueError, match="sparse"):
            write()
        assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))  # bytes of a file
    try:
        with pytest.raises(Unreachable, match=r"p: cannot be written \(File too large\). Check the disk"):
            a_prompt().save(tmp_path / "p")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_the_prompt_with_a_page_that_says_how_to_use_it(tmp_path: Path) -> None:
    export_folder(Published(a_prompt(), 3, {}), tmp_path / "out")
    assert TunedPrompt.load(tmp_path / "out").digest == a_prompt().digest
    page = (tmp_path / "out" / "README.md").read_text()
    assert page.startswith("# t@3\n") and a_prompt().digest in page and "`embeddings` [2, 3]" in page
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
