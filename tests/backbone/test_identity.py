"""A backbone's identity is its content: digests of weights and tokenizer, wherever the folder lies."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from helpers import backbone_at, save_tiny, wordless_tokenizer

from prompt_core.backbone.identity import tokenizer_digest, weights_digest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    return file


def test_a_digest_is_computed_once_and_then_looked_up_by_every_process(cache: Path, weights: Path) -> None:
    assert weights_digest(weights.parent, None) == hashlib.sha256(b"weights").hexdigest()
    (note,) = cache.rglob("digests/*")
    note.write_text("0" * 64)
    assert weights_digest(weights.parent, None) == "0" * 64


@pytest.mark.parametrize("size", [7, 8])
def test_changed_weights_get_another_digest_though_their_time_is_set_back(weights: Path, size: int) -> None:
    before, state = weights_digest(weights.parent, None), weights.stat()
    weights.write_bytes(b"W" * size)
    os.utime(weights, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert weights_digest(weights.parent, None) == hashlib.sha256(b"W" * size).hexdigest() != before


def test_a_damaged_note_is_not_believed(cache: Path, weights: Path) -> None:
    before = weights_digest(weights.parent, None)
    (note,) = cache.rglob("digests/*")
    note.write_text("")
    assert weights_digest(weights.parent, None) == before


def test_a_cache_that_cannot_be_written_costs_only_the_note(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(weights))  # a file, in which no folder can be made
    assert weights_digest(weights.parent, None) == hashlib.sha256(b"weights").hexdigest()


def test_all_shards_that_the_index_names_count_and_no_other_file(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"model-{number}.safetensors").write_bytes(b"%d" % number)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    before = weights_digest(tmp_path, None)
    (tmp_path / "consolidated.safetensors").write_bytes(b"both, in another layout")
    assert weights_digest(tmp_path, None) == before
    (tmp_path / "model-2.safetensors").write_bytes(b"twenty")
    assert weights_digest(tmp_path, None) != before


def test_rounded_weights_are_other_weights(weights: Path) -> None:
    assert len({weights_digest(weights.parent, None, quantization) for quantization in (None, "8bit", "4bit")}) == 3


def test_a_chat_template_belongs_to_the_tokenizer_wherever_it_stands(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    bare = tokenizer_digest(tmp_path)
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps({"model_max_length": 8}))
    assert tokenizer_digest(tmp_path) == bare
    settings.write_text(json.dumps({"chat_template": "{{ messages }}"}))
    inside = tokenizer_digest(tmp_path)
    settings.unlink()
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert len({bare, inside, tokenizer_digest(tmp_path)}) == 3


def test_a_copy_of_the_folder_is_the_same_model_and_other_weights_are_not(tmp_path: Path) -> None:
    tiny, copy, other = (
        backbone_at(str(save_tiny(architecture, tmp_path / name, wordless_tokenizer())))
        for architecture, name in (("llama", "tiny"), ("llama", "copy"), ("qwen2", "other"))
    )
    assert (copy.identity.weights, copy.identity.tokenizer) == (tiny.identity.weights, tiny.identity.tokenizer)
    assert other.identity.weights != tiny.identity.weights
    assert other.identity.architecture == "Qwen2ForCausalLM"


def test_another_tokenizer_is_seen(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "tiny", wordless_tokenizer())
    before = tokenizer_digest(folder)
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text().replace("t255", "other"))
    assert tokenizer_digest(folder) != before
