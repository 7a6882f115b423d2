"""Small prompts, stores that hold some, and the check that a store is whole; for the tests and for the processes that they start."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_core.store import PromptStore

if TYPE_CHECKING:
    from prompt_core.artifact import TunedPrompt

PASSED: dict[str, Any] = {"verdict": {"passed": True}, "scores": {"chrf": 41.5}}
FAILED: dict[str, Any] = {"verdict": {"passed": False, "reasons": ["gain over few_shot is too small"]}}
FULL = os.environ.get("PROMPTMILL_HARDNESS") == "full"


@dataclass(frozen=True)
class SmallPrompt:
    """The least that a store keeps: a file of text, and one in a folder."""

    name: str
    text: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def save(self, folder: Path) -> None:
        (folder / "more").mkdir(parents=True)
        (folder / "text").write_text(self.text, encoding="utf-8")
        (folder / "more" / "again").write_text(self.text * 50, encoding="utf-8")


def a_store(address: str | Path, versions: int = 0, live: bool = True) -> PromptStore:
    """A store with versions of the prompt `reply`, each promoted when it was published."""
    store = PromptStore(address)
    for number in range(1, versions + 1):
        assert store.publish(SmallPrompt("reply", f"text {number}"), PASSED) == number
        if live:
            store.promote("reply", number)
    return store


def text_of(store: PromptStore, version: int | str, name: str = "reply") -> str:
    """The text of a version, equal in both of its files."""
    with store.checkout(name, version) as folder:
        text = (folder / "text").read_text(encoding="utf-8")
        assert (folder / "more" / "again").read_text(encoding="utf-8") == text * 50
    return text


def assert_whole(store: PromptStore, name: str | None = None) -> None:
    """Every version is readable, all digests are right, and every alias stands for a whole version."""
    assert store.verify(name).problems == ()
    for summary in (summary for summary in store.list() if name in (None, summary.name)):
        for number in summary.versions:
            assert store.record(summary.name, number).digest == SmallPrompt(summary.name, text_of(store, number, summary.name)).digest
        assert set(summary.aliases.values()) <= set(summary.versions)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def a_tuned_prompt(value: float) -> TunedPrompt:
    import torch

    from prompt_core.artifact import TunedPrompt
    from prompt_core.manifest import BackboneIdentity, DataRecord, Manifest, TuningRecord

    return TunedPrompt(
        Manifest(
            name="reply",
            kind="soft",
            tokens=2,
            parameters=6,
            task={},
            labels=(),
            max_new_tokens=None,
            backbone=BackboneIdentity(name="b", revision=None, architecture="a", dtype="float32", weights="w", tokenizer="t"),
            tuning=TuningRecord(steps=1, kept_step=1, train_loss=(1.0,), validation=()),
            truncated_rows=0,
            data=DataRecord(train_rows=1, train="d", validation_rows=0, validation="d"),
            versions={},
            device="cpu",
        ),
        {"embeddings": torch.full((2, 3), value)},
    )
