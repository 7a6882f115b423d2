"""A backbone's identity is its content: digests of weights and tokenizer, wherever the folder lies."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from helpers import backbone_at, save_tiny

from prompt_core.backbone import Backbone
from prompt_core.backbone.identity import tokenizer_digest, weights_digest


def test_the_remembered_digest_is_the_computed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    expected = hashlib.sha256(b"weights").hexdigest()
    assert [weights_digest(tmp_path, None) for _ in range(2)] == [expected, expected]
    assert len(list((tmp_path / "cache").rglob("digests/*"))) == 1


def test_changed_weights_get_another_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    before = weights_digest(tmp_path, None)
    weights.write_bytes(b"Weights")
    os.utime(weights, ns=(1, 1))
    assert weights_digest(tmp_path, None) == hashlib.sha256(b"Weights").hexdigest() != before


def test_all_shards_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in (1, 2):
        (tmp_path / f"model-{number}.safetensors").write_bytes(b"%d" % number)
    before = weights_digest(tmp_path, None)
    (tmp_path / "model-2.safetensors").write_bytes(b"twenty")
    assert weights_digest(tmp_path, None) != before


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


def test_a_copy_of_the_folder_is_the_same_model_and_other_weights_are_not(tmp_path: Path, llama: Backbone) -> None:
    copy = backbone_at(str(save_tiny("llama", tmp_path / "copy")))
    assert (copy.identity.weights, copy.identity.tokenizer) == (llama.identity.weights, llama.identity.tokenizer)
    other = backbone_at(str(save_tiny("qwen2", tmp_path / "other")))
    assert other.identity.weights != llama.identity.weights
    assert other.identity.architecture == "Qwen2ForCausalLM"
