"""Models for the tests: two tiny random ones, written once as folders, and the two embedded ones in float32."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # torch is imported by the tests that need a model
    from prompt_core.backbone import Backbone


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from helpers import save_tiny

    return save_tiny("llama", tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from helpers import save_tiny

    return save_tiny("bert", tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="session")
def llama(llama_folder: Path) -> Backbone:
    from helpers import backbone_at

    return backbone_at(str(llama_folder))


@pytest.fixture(scope="session")
def bert(bert_folder: Path) -> Backbone:
    from helpers import backbone_at

    return backbone_at(str(bert_folder))


@pytest.fixture(scope="session")
def smollm2() -> Backbone:
    from helpers import backbone_at

    return backbone_at("smollm2")


@pytest.fixture(scope="session")
def minilm() -> Backbone:
    from helpers import backbone_at

    return backbone_at("minilm")
