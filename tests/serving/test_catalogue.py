"""What is loaded for the aliases of a store is loaded once, however many there are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from served_prompts import PASSED, a_prompt, publish

from prompt_core import shelf
from prompt_core.backbone import Backbone
from prompt_core.serving.catalogue import Catalogue
from prompt_core.serving.engine import Engine
from prompt_core.serving.metrics import Metrics
from prompt_core.store import PromptStore

NAMES = ("a", "b", "c")


@pytest.fixture
def catalogue(tmp_path: Path, llama: Backbone, monkeypatch: pytest.MonkeyPatch) -> Iterator[Catalogue]:
    """Three live prompts, each with a version before, where two versions are kept beside the live ones."""
    monkeypatch.setattr(shelf, "_MOST", 2)
    store = PromptStore(tmp_path / "store")
    for name in NAMES:
        store.publish(a_prompt(llama, name, seed=1), PASSED)
        publish(store, a_prompt(llama, name, seed=2))
    metrics = Metrics()
    engine = Engine(64, metrics)
    engine.start()
    catalogue = Catalogue(store, (), engine, 60, metrics)
    assert catalogue.refresh() == {}
    yield catalogue
    engine.close()


def test_a_look_loads_no_live_version_again(catalogue: Catalogue) -> None:
    before = catalogue.addresses
    for name in NAMES:
        catalogue.find(f"{name}@1")
    assert catalogue.refresh() == {}
    after = catalogue.addresses
    assert all(after[name] is before[name] is catalogue.find(f"{name}@2") for name in NAMES)


def test_versions_without_an_alias_are_kept_until_others_were_used_since(catalogue: Catalogue) -> None:
    first = catalogue.find("a@1")
    catalogue.find("b@1")
    assert catalogue.find("a@1") is first
    catalogue.find("c@1")
    catalogue.find("b@1")
    assert catalogue.find("a@1") is not first
