from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prompt_core.errors import PromptmillError
from prompt_core.store import VersionRecord
from prompt_core.store import PromptStore

if TYPE_CHECKING:
    from prompt_core.artifact import TunedPrompt

PASSED: dict[str, Any] = {"verdict": {"passed": True}, "scores": {"chrf": 41.5}}


@dataclass(frozen=True)
class SmallPrompt:
    """The least that a store keeps: one file of text."""

    name: str
    text: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "text").write_text(self.text, encoding="utf-8")


class BrokenPrompt(SmallPrompt):
    """One whose save stops half-way."""

    def save(self, folder: Path) -> None:
        super().save(folder)
        raise KeyboardInterrupt


def a_store(folder: Path, versions: int = 0, live: bool = True) -> PromptStore:
    """A store with versions of the prompt `reply`, each promoted when it was published."""
    store = PromptStore(folder / "store")
    for number in range(1, versions + 1):
        assert store.publish(SmallPrompt("reply", f"text {number}"), PASSED) == number
        if live:
            store.promote("reply", number)
    return store


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_published_version_can_be_found_with_its_record(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    prompt = SmallPrompt("reply", "be kind")
    assert store.publish(prompt, PASSED, why="first") == 1
    record = store.record("reply", 1)
    assert (record.name, record.version, record.digest, record.why, record.evaluation) == ("reply", 1, prompt.digest, "first", PASSED)
    offset = datetime.fromisoformat(record.published).utcoffset()
    assert offset is not None and not offset
    assert (store.path("reply", "1") / "text").read_text() == "be kind"
    assert store.path("reply", 1) == store.root / "objects" / prompt.digest


def test_publishing_moves_no_alias(tmp_path: Path) -> None:
    store = a_store(tmp_path, versions=2, live=False)
    (summary,) = store.list()
    assert (summary.name, summary.versions, summary.aliases) == ("reply", (1, 2), {})


def test_the_same_content_is_published_once_per_name(tmp_path: Path) -> None:
    store = a_store(tmp_path, versions=2)
    before = files(store.root)
    assert store.publish(SmallPrompt("reply", "text 1"), {**PASSED, "scores": {}}, why="again") == 1
    assert files(store.root) == before
    assert store.publish(SmallPrompt("other", "text 1"), PASSED) == 1
    assert len(list((store.root / "objects").iterdir())) == 2


@pytest.mark.parametrize("evaluation", [{}, {"verdict": None}, {"verdict": {"passed": False}}, {"verdict": {"passed": "yes"}}])
def test_only_a_prompt_that_passed_is_published(tmp_path: Path, evaluation: dict[str, Any]) -> None:
    store = a_store(tmp_path)
    with pytest.raises(PromptmillError, match=r"prompt reply: did not pass its evaluation \(verdict: .*\). Only a prompt that passed"):
        store.publish(SmallPrompt("reply", "x"), evaluation)
    assert not store.root.exists()


@pytest.mark.parametrize("name", ["a/b", "..", "../up", "", ".hidden", "a b", "x" * 101])
def test_names_that_are_no_plain_names_are_refused(tmp_path: Path, name: str) -> None:
    store = a_store(tmp_path, versions=1)
    for attempt in (
        lambda: store.publish(SmallPrompt(name, "x"), PASSED),
        lambda: store.record(name, 1),
        lambda: store.get(name),
        lambda: store.promote(name, 1),
        lambda: store.promote("reply", 1, alias=name),
        lambda: store.rollback("reply", alias=name),
    ):
        with pytest.raises(PromptmillError, match=r"is not a plain name. Use letters, digits"):
            attempt()


def test_unknown_names_versions_and_aliases_are_answered_with_the_nearest(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    with pytest.raises(PromptmillError, match=r'there is no prompt "reply". The store is empty'):
        store.resolve("reply", 1)
    store = a_store(tmp_path, versions=2, live=False)
    with pytest.raises(PromptmillError, match=r'there is no prompt "repyl". Did you mean "reply"\?'):
        store.resolve("repyl", 1)
    with pytest.raises(PromptmillError, match=r"prompt reply: there is no version 3. Known: 1, 2\."):
        store.record("reply", 3)
    with pytest.raises(PromptmillError, match=r'there is no alias "production". No alias is set; promote one of the versions 1, 2'):
        store.path("reply", "production")
    store.promote("reply", 2)
    with pytest.raises(PromptmillError, match=r'there is no alias "prodution". Did you mean "production"\?'):
        store.resolve("reply", "prodution")


def test_promotion_is_recorded_and_repeating_it_is_not(tmp_path: Path) -> None:
    store = a_store(tmp_path, versions=2, live=False)
    store.promote("reply", 1, who="ann", why="first")
    store.promote("reply", "2", who="bob")
    store.promote("reply", "production", alias="staging")
    store.promote("reply", 2)
    aliases = json.loads((store.root / "prompts" / "reply" / "aliases.json").read_text())
    assert aliases["production"]["version"] == store.resolve("reply", "production") == 2
    assert [(m["version"], m["who"], m["why"]) for m in aliases["production"]["history"]] == [(1, "ann", "first"), (2, "bob", "")]
    assert datetime.fromisoformat(aliases["production"]["history"][0]["when"]).tzinfo
    assert store.list()[0].aliases == {"production": 2, "staging": 2}


def test_a_late_job_does_not_promote_an_older_version_unless_forced(tmp_path: Path) -> None:
    store = a_store(tmp_path, versions=2)
    with pytest.raises(PromptmillError, match=r"version 1 is older than 2, which is live. Roll back, or force it"):
        store.promote("reply", 1)
    assert store.resolve("reply", "production") == 2
    store.promote("reply", 1, force=True)
    assert store.resolve("reply", "production") == 1


def test_an_alias_that_looks_like_a_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptmillError, match="alias 7: is a number, which stands for a version"):
        a_store(tmp_path, versions=1).promote("reply", 1, alias="7")


def test_rollbacks_walk_back_and_are_recorded(tmp_path: Path) -> None:
    store = a_store(tmp_path, versions=3)
    assert store.rollback("reply", why="worse on Mondays") == 2
    assert store.rollback("reply") == 1
    with pytest.raises(PromptmillError, match="prompt reply, alias production: there is no version before 1 to go back to"):
        store.rollback("reply")
    history = json.loads((store.root / "prompts" / "reply" / "aliases.json").read_text())["production"]["history"]
    assert [move["version"] for move in history] == [1, 2, 3, 2, 1]
    assert [move["why"] for move in history[3:]] == ["worse on Mondays", "rollback from version 2"]
    with pytest.raises(PromptmillError, match='no alias "staging"'):
        store.rollback("reply", "staging")


def test_a_rollback_after_a_new_promotion_skips_the_version_that_was_taken_off(tmp_path: Path) -> None:
    store = a_store(tmp_path, versions=2)
    store.publish(SmallPrompt("reply", "text 3"), PASSED)
    store.rollback("reply")
    store.promote("reply", 3)
    assert store.rollback("reply") == 1


def test_the_store_is_a_path_or_a_file_url(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    PromptStore(folder).publish(SmallPrompt("reply", "x"), PASSED)
    assert [s.name for s in PromptStore(folder.as_uri()).list()] == [s.name for s in PromptStore(str(folder)).list()] == ["reply"]
    assert PromptStore(tmp_path / "none").list() == []
    with pytest.raises(PromptmillError, match=r'store s3://bucket/p: scheme "s3" is not supported. Give a local folder'):
        PromptStore("s3://bucket/p")
    with pytest.raises(PromptmillError, match=r'"store" stands where a host name does. Write file:/// and an absolute path'):
        PromptStore("file://store/p")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(PromptmillError, match=r"store .*: cannot be written \("):
        a_store(tmp_path).publish(SmallPrompt("reply", "x"), PASSED)


def test_missing_content_and_damaged_records_are_named(tmp_path: Path) -> None:
    store = a_store(tmp_path, versions=1)
    (store.path("reply", 1) / "text").unlink()
    store.path("reply", 1).rmdir()
    with pytest.raises(PromptmillError, match='the content of prompt "reply" version 1 is missing'):
        store.path("reply", 1)
    record = store.root / "prompts" / "reply" / "versions" / "1.json"
    record.write_text('{"name": "reply"')
    with pytest.raises(PromptmillError, match=re.escape(f"{record}: cannot be read (1 validation error")):
        store.record("reply", 1)


def test_a_save_that_stops_half_way_leaves_nothing(tmp_path: Path) -> None:
    store = a_store(tmp_path, versions=1)
    before = files(store.root)
    with pytest.raises(KeyboardInterrupt):
        store.publish(BrokenPrompt("reply", "half"), PASSED)
    assert files(store.root) == before
    assert store.publish(SmallPrompt("reply", "half"), PASSED) == 2


def a_tuned_prompt(value: float) -> TunedPrompt:
    import torch

    from prompt_core.artifact import BackboneIdentity, DataRecord, Manifest, TunedPrompt, TuningRecord

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


def test_a_tuned_prompt_comes_back_by_number_and_alias(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    for value in (1.0, 2.0):
        store.promote("reply", store.publish(a_tuned_prompt(value), PASSED))
    assert store.get("reply").digest == store.get("reply", 2).digest == a_tuned_prompt(2.0).digest
    assert store.get("reply", "1").tensors["embeddings"].unique().tolist() == [1.0]


def test_what_is_live_is_the_prompt_in_production_or_nothing(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    assert store.live("reply") is None
    store.publish(a_tuned_prompt(1.0), PASSED)
    store.promote("reply", 1, alias="staging")
    assert store.live("reply") is None
    store.promote("reply", 1)
    live = store.live("reply")
    assert live is not None and live.digest == a_tuned_prompt(1.0).digest
    with pytest.raises(PromptmillError, match="is not a plain name"):
        store.live("../reply")


def test_content_that_was_changed_or_swapped_is_refused(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    for value in (1.0, 2.0):
        store.publish(a_tuned_prompt(value), PASSED)
    one, two = store.path("reply", 1), store.path("reply", 2)
    with (one / "manifest.json").open("ab") as file:
        file.write(b" ")
    with pytest.raises(PromptmillError, match=re.escape(str(one))):
        store.get("reply", 1)
    shutil.rmtree(one)
    shutil.copytree(two, one)
    with pytest.raises(PromptmillError, match=r"holds content with digest .* The store is damaged"):
        store.get("reply", 1)


def test_records_refuse_a_digest_that_is_none() -> None:
    with pytest.raises(ValueError, match="digest"):
        VersionRecord(name="a", version=1, digest="../x", published="", why="", evaluation={})
