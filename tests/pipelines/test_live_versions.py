"""The gauge of live versions: what the store says now, whoever moved it; a store that is damaged or hangs breaks no scrape."""

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from pipelines.live_versions import LiveVersions
from prompt_core import PromptStore


@dataclass(frozen=True)
class Reply:
    """The least that a store keeps."""

    digest: str
    name: str = "reply"

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "text").write_text(self.digest, encoding="utf-8")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PromptStore:
    """One with two versions, of which the second is live, and every scrape looks at it."""
    monkeypatch.setattr("pipelines.live_versions._FRESH", 0.0)
    store = PromptStore(tmp_path / "store")
    for number in (1, 2):
        store.promote("reply", store.publish(Reply(f"{number}" * 64), {"verdict": {"passed": True}}))
    return store


@pytest.fixture
def scraped(store: PromptStore) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(LiveVersions(store))
    return registry


def live(scraped: CollectorRegistry) -> float | None:
    return scraped.get_sample_value("promptmill_live_version", {"task": "reply"})


def newest_entry(store: PromptStore) -> Path:
    return max((Path(store.url) / "prompts" / "reply" / "log").iterdir())


def test_a_rollback_shows(store: PromptStore, scraped: CollectorRegistry) -> None:
    assert live(scraped) == 2
    store.rollback("reply", who="ann", why="rude on Mondays")
    assert live(scraped) == 1


def test_a_withdrawn_version_is_gone(store: PromptStore, scraped: CollectorRegistry) -> None:
    assert live(scraped) == 2
    store.withdraw("reply", who="ann", why="names a customer")
    assert live(scraped) is None


def test_a_prompt_that_is_not_live_has_no_version(store: PromptStore, scraped: CollectorRegistry) -> None:
    store.publish(Reply("3" * 64, "quiet"), {"verdict": {"passed": True}})
    assert scraped.get_sample_value("promptmill_live_version", {"task": "quiet"}) is None


def test_between_two_looks_the_store_is_left_alone(store: PromptStore, scraped: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.live_versions._FRESH", 3600.0)
    assert live(scraped) == 2
    store.rollback("reply")
    assert live(scraped) == 2


def test_while_the_store_cannot_be_read_there_is_no_version_and_a_line_says_why(
    store: PromptStore, scraped: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    entry = newest_entry(store)
    content = entry.read_bytes()
    entry.write_bytes(b"{")
    assert live(scraped) is None
    assert "The live versions are not known" in caplog.text and entry.name in caplog.text
    entry.write_bytes(content)
    assert live(scraped) == 2


def test_a_store_that_hangs_is_not_waited_for(store: PromptStore, scraped: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    assert live(scraped) == 2
    monkeypatch.setattr("pipelines.live_versions._WAIT", 0.05)
    entry = newest_entry(store)
    entry.unlink()
    os.mkfifo(entry)  # whoever reads it waits for a writer
    assert live(scraped) == live(scraped) == 2
    entry.open("wb").close()
    entry.unlink()
    store.promote("reply", 1, force=True, why="2 is gone")
    monkeypatch.setattr("pipelines.live_versions._WAIT", 3.0)
    live(scraped)
    assert live(scraped) == 1
