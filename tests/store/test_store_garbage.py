"""What a collection of garbage takes, and what it must leave."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from store_builders import FAILED, PASSED, SmallPrompt, a_store, assert_whole, files, text_of

from prompt_core.errors import PromptmillError
from prompt_core.store.filesystem import open_files


def test_it_shows_what_it_would_remove_and_removes_that_when_told(address: str) -> None:
    store = a_store(address, versions=5)
    shown = store.gc(keep=1, grace=0)
    assert [(found.name, found.version) for found in shown.versions] == [("reply", 1), ("reply", 2), ("reply", 3)]
    assert shown.bytes > 3 * 50 * len("text 1") and store.list()[0].versions == (1, 2, 3, 4, 5)
    assert store.gc(keep=1, grace=0, delete=True, who="ann", why="full disk") == shown
    assert store.list()[0].versions == (4, 5)
    with pytest.raises(PromptmillError, match=r"there is no version 3\. Known: 4, 5\."):
        store.resolve("reply", 3)
    assert not store.gc(keep=1, grace=0).versions
    assert_whole(store)
    assert store.rollback("reply") == 4
    with pytest.raises(PromptmillError, match="there is no version before 4"):
        store.rollback("reply")


def test_numbers_of_removed_versions_are_never_used_again(address: str) -> None:
    store = a_store(address, versions=2)
    store.publish(SmallPrompt("reply", "never promoted"), PASSED)
    store.gc(grace=0, delete=True)
    assert store.list()[0].versions == (1, 2)
    assert store.publish(SmallPrompt("reply", "next"), PASSED) == 4
    assert store.publish(SmallPrompt("reply", "never promoted"), PASSED) == 5
    assert text_of(store, 5) == "never promoted"


def test_every_alias_and_its_last_moves_are_kept(address: str) -> None:
    store = a_store(address, versions=6)
    store.promote("reply", 1, alias="staging")
    assert [found.version for found in store.gc(keep=0, grace=0).versions] == [2, 3, 4, 5]
    assert [found.version for found in store.gc(keep=2, grace=0).versions] == [2, 3]
    assert store.gc(keep=20, grace=0).versions == ()


def test_the_last_moves_of_a_withdrawn_alias_are_kept_and_always_what_was_withdrawn(address: str) -> None:
    store = a_store(address, versions=4)
    store.withdraw("reply", why="a leak")
    assert [found.version for found in store.gc(keep=2, grace=0).versions] == [1, 2]
    assert [found.version for found in store.gc(keep=0, grace=0, delete=True).versions] == [1, 2, 3]
    with pytest.raises(PromptmillError, match="version 4 was taken back"):  # and is not published anew under another number
        store.promote("reply", store.publish(SmallPrompt("reply", "text 4"), PASSED))
    store.promote("reply", store.publish(SmallPrompt("reply", "better"), PASSED))
    assert [found.version for found in store.gc(keep=1, grace=0).versions] == [4]
    assert_whole(store)


def test_a_version_that_was_withdrawn_within_the_grace_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as long_ago:
        long_ago.setattr("prompt_core.store.log.now", lambda: "2020-01-01T00:00:00+00:00")
        store = a_store(tmp_path / "store", versions=2)
    store.withdraw("reply", why="a leak")
    store.promote("reply", store.publish(SmallPrompt("reply", "better"), PASSED))
    assert [found.version for found in store.gc(keep=0, grace=60).versions] == [1]  # a reader who looked before may still load 2


def test_the_history_outlives_the_versions(address: str) -> None:
    store = a_store(address, versions=4)
    before = store.history("reply")
    store.gc(keep=0, grace=0, delete=True)
    assert store.history("reply") == before


def test_what_is_younger_than_the_grace_stays(tmp_path: Path) -> None:
    store = a_store(tmp_path / "store", versions=3)
    open_files(tmp_path / "store").write_new("prompts/reply/content/half", {"text": b"of a publisher"})
    (tmp_path / "store" / ".new" / "tmp1").write_bytes(b"half")
    before = files(tmp_path)
    assert not store.gc(keep=0, grace=60, delete=True).leftovers
    assert files(tmp_path) == before
    old = time.time() - 3600
    for path in (tmp_path / "store" / "prompts" / "reply" / "content" / "half" / "text", tmp_path / "store" / ".new" / "tmp1"):
        os.utime(path, (old, old))
    found = store.gc(keep=0, grace=60, delete=True)
    assert ([leftover.folder for leftover in found.leftovers], found.half_written, found.versions) == (["half"], (".new/tmp1",), ())
    assert len(files(tmp_path)) == len(before) - 2
    assert_whole(store)


def test_content_whose_first_publication_died_is_found(address: str) -> None:
    store = a_store(address)
    open_files(address).write_new("prompts/other/content/half", {"text": b"of a publisher"})
    assert store.list() == []
    assert [leftover.name for leftover in store.gc(grace=0, delete=True).leftovers] == ["other"]
    assert store.gc(grace=0).leftovers == ()


def test_one_prompt_can_be_cleaned_alone(address: str) -> None:
    store = a_store(address, versions=3)
    store.publish(SmallPrompt("other", "a"), FAILED, force=True, why="a look")
    assert [found.name for found in store.gc("other", grace=0).versions] == ["other"]
    assert [found.name for found in store.gc("reply", keep=0, grace=0).versions] == ["reply", "reply"]
    with pytest.raises(PromptmillError, match=r'there is no prompt "othr". Did you mean "other"\?'):
        store.gc("othr", delete=True)
