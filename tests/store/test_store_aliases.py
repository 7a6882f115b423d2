"""Aliases of a store: who may move them, back again by a rollback, and away."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from store_builders import FAILED, PASSED, SmallPrompt, a_store, a_tuned_prompt, assert_whole, files

from prompt_core.errors import PromptmillError
from prompt_core.store import PromptStore


def test_production_takes_what_did_not_pass_by_force_alone_and_says_so(address: str) -> None:
    store = a_store(address, versions=1)
    assert store.publish(SmallPrompt("reply", "risky"), FAILED, why="for the demo", force=True) == 2
    record = store.record("reply", 2)
    assert (record.forced, record.why) == (True, "for the demo")
    store.promote("reply", 2, "candidate")
    with pytest.raises(PromptmillError, match=r"alias production: version 2 did not pass its evaluation. Promote one that did, or force"):
        store.promote("reply", 2, why="please")
    with pytest.raises(PromptmillError, match=r"alias production: is forced without a reason"):
        store.promote("reply", 2, force=True)
    assert store.resolve("reply", "production") == 1
    store.promote("reply", 2, who="bob", why="the fair is today", force=True)
    move = store.history("reply", "production")[-1]
    assert (move.before, move.version, move.who, move.why, move.forced) == (1, 2, "bob", "the fair is today", True)
    assert [move.forced for move in store.history("reply", "candidate")] == [False]


def test_a_forced_version_comes_back_from_a_rollback_as_forced(address: str) -> None:
    store = a_store(address)
    store.publish(SmallPrompt("reply", "risky"), FAILED, why="demo", force=True)
    store.promote("reply", 1, why="demo", force=True)
    store.publish(SmallPrompt("reply", "good"), PASSED)
    store.promote("reply", 2)
    assert store.rollback("reply") == 1
    assert [move.forced for move in store.history("reply")] == [True, False, True]


def test_promotion_is_recorded_and_repeating_it_is_not(address: str) -> None:
    store = a_store(address, versions=2, live=False)
    store.promote("reply", 1, who="ann", why="first")
    store.promote("reply", "2", who="bob")
    store.promote("reply", "production", alias="staging")
    store.promote("reply", 2)
    moves = PromptStore(address).history("reply")
    assert [(m.alias, m.before, m.version, m.who, m.why) for m in moves] == [
        ("production", None, 1, "ann", "first"),
        ("production", 1, 2, "bob", ""),
        ("staging", None, 2, "", ""),
    ]
    assert datetime.fromisoformat(moves[0].when).tzinfo
    assert store.list()[0].aliases == {"production": 2, "staging": 2}


def test_a_late_job_does_not_promote_an_older_version_unless_forced(address: str) -> None:
    store = a_store(address, versions=2)
    with pytest.raises(PromptmillError, match=r"version 1 is older than 2, which is live. Roll back, or force it"):
        store.promote("reply", 1)
    assert store.resolve("reply", "production") == 2
    store.promote("reply", 1, force=True, why="known to be good")
    assert store.resolve("reply", "production") == 1
    assert store.history("reply")[-1].forced


def test_an_alias_moves_only_from_what_the_version_was_compared_with(address: str) -> None:
    store = a_store(address, versions=2)
    live = store.record("reply", 2).digest
    assert store.publish(SmallPrompt("reply", "compared with 2"), PASSED) == 3
    assert store.publish(SmallPrompt("reply", "a hotfix"), PASSED) == 4
    store.promote("reply", 4, who="ann", why="hotfix", instead_of=live)
    line = r"alias production: stands for version 4 by now, with which version 3 was not compared. Evaluate it again, or force it"
    with pytest.raises(PromptmillError, match=line):
        store.promote("reply", 3, instead_of=live)
    with pytest.raises(PromptmillError, match="stands for version 4 by now"):
        store.promote("reply", 3, instead_of=None)
    assert store.resolve("reply", "production") == 4
    store.promote("reply", 4, instead_of=live)  # it stands for that already
    store.promote("reply", 3, instead_of=store.record("reply", 4).digest)  # an older number, but nobody is late
    assert store.resolve("reply", "production") == 3
    assert [move.forced for move in store.history("reply", "production")] == [False] * 4
    assert store.rollback("reply") == 4
    store.publish(SmallPrompt("fresh", "first"), PASSED)
    store.promote("fresh", 1, instead_of=None)
    assert store.resolve("fresh", "production") == 1


def test_what_a_rollback_took_back_goes_live_again_by_force_alone(address: str) -> None:
    store = a_store(address, versions=2)
    assert store.rollback("reply", who="ann", why="rude on Mondays") == 1
    for compared in ({}, {"instead_of": store.record("reply", 1).digest}):
        with pytest.raises(PromptmillError, match=r"version 2 was taken back\. Publish a better one, or force it"):
            store.promote("reply", 2, **compared)
    store.promote("reply", 2, alias="candidate")  # that is another alias
    store.promote("reply", 2, why="it was the data", force=True)
    assert store.rollback("reply") == 1
    store.publish(SmallPrompt("reply", "better"), PASSED)
    store.promote("reply", 3)
    assert store.verify().problems == ()


def test_a_withdrawn_alias_stands_for_nothing_and_its_version_comes_back_by_force_alone(address: str) -> None:
    store = a_store(address, versions=2)
    store.promote("reply", 2, alias="candidate")
    digest = store.record("reply", 2).digest
    store.withdraw("reply", who="ann", why="names a customer")
    assert store.list()[0].aliases == {"candidate": 2} and store.live("reply") is None
    with pytest.raises(PromptmillError, match=r'there is no alias "production"\. Known: candidate\.'):
        store.find("reply")
    for compared in ({}, {"instead_of": None}, {"instead_of": digest}):  # a late job, the next unchanged run, and one that began before
        with pytest.raises(PromptmillError, match=r"alias production: version 2 was taken back\. Publish a better one, or force it"):
            store.promote("reply", store.publish(SmallPrompt("reply", "text 2"), PASSED), **compared)
    assert store.publish(SmallPrompt("reply", "better"), PASSED) == 3
    with pytest.raises(PromptmillError, match=r"stands for nothing by now, with which version 3 was not compared"):
        store.promote("reply", 3, instead_of=digest)
    store.promote("reply", 3, instead_of=None)
    with pytest.raises(PromptmillError, match=r"there is no version before 3 to go back to\. Promote another version, or withdraw"):
        store.rollback("reply")
    store.promote("reply", 2, why="it was an invented name", force=True)
    moves = PromptStore(address).history("reply", "production")
    assert [(move.before, move.version, move.forced) for move in moves[2:]] == [(2, None, False), (None, 3, False), (3, 2, True)]
    assert (moves[2].who, moves[2].why) == ("ann", "names a customer")
    assert_whole(store)


def test_what_was_forced_live_and_passes_later_takes_its_own_place(address: str) -> None:
    store = a_store(address)
    risky = SmallPrompt("reply", "risky")
    store.promote("reply", store.publish(risky, FAILED, why="the fair", force=True), why="the fair", force=True)
    store.promote("reply", store.publish(risky, PASSED), instead_of=None)  # a prompt is not compared with itself
    assert store.resolve("reply", "production") == 2 and not store.history("reply")[-1].forced
    assert_whole(store)


def test_a_version_that_was_taken_back_is_loaded_by_its_number_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = a_store(tmp_path / "store")
    for value in (1.0, 2.0):
        store.promote("reply", store.publish(a_tuned_prompt(value), PASSED))
    store.rollback("reply", why="rude")
    store.withdraw("reply", why="names a customer")
    for number in (1, 2):
        assert store.get("reply", number).tensors["embeddings"].unique().tolist() == [number]
    line = "reply@{} was taken back from production: `promptmill history reply` says why"
    assert caplog.messages == [line.format(1), line.format(2)]
    store.promote("reply", 1, "candidate")
    store.promote("reply", 2, why="it was the data", force=True)
    for given in (1, 2, "candidate", "production"):
        store.get("reply", given)
    assert len(caplog.messages) == 2


def test_what_was_forced_and_taken_back_does_not_return_under_a_new_number_when_it_passes(address: str) -> None:
    store = a_store(address)
    risky = SmallPrompt("reply", "risky")
    store.promote("reply", store.publish(risky, FAILED, why="the fair", force=True), why="the fair", force=True)
    store.withdraw("reply", why="rude")
    assert store.publish(risky, PASSED) == 2  # nothing is live by now that it could be worse than
    with pytest.raises(PromptmillError, match="version 2 was taken back"):
        store.promote("reply", 2, instead_of=None)
    store.promote("reply", 2, why="it was the data", force=True)
    store.promote("reply", store.publish(SmallPrompt("reply", "better"), PASSED))
    store.promote("reply", 2, instead_of=store.record("reply", 3).digest)  # as data that return to an earlier state bring it back
    assert [move.forced for move in store.history("reply")] == [True, False, True, False, False]


def test_an_alias_is_withdrawn_with_a_reason_and_once(tmp_path: Path) -> None:
    store = a_store(tmp_path / "store", versions=1)
    before = files(tmp_path)
    with pytest.raises(PromptmillError, match=r"prompt reply, alias production: is withdrawn without a reason\. Say why"):
        store.withdraw("reply", why=" ")
    with pytest.raises(PromptmillError, match=r'there is no alias "prodution"\. Did you mean "production"\?'):
        store.withdraw("reply", "prodution", why="a leak")
    assert files(tmp_path) == before
    store.withdraw("reply", why="a leak")
    for attempt in (lambda: store.withdraw("reply", why="a leak"), lambda: store.rollback("reply")):
        with pytest.raises(PromptmillError, match=r'there is no alias "production"\. No alias is set; promote one of the versions 1'):
            attempt()


def test_an_alias_that_looks_like_a_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptmillError, match="alias 7: is a number, which stands for a version"):
        a_store(tmp_path / "store", versions=1).promote("reply", 1, alias="7")


def test_rollbacks_walk_back_and_are_recorded(address: str) -> None:
    store = a_store(address, versions=3)
    assert store.rollback("reply", who="ann", why="worse on Mondays") == 2
    assert store.rollback("reply") == 1
    with pytest.raises(PromptmillError, match="prompt reply, alias production: there is no version before 1 to go back to"):
        store.rollback("reply")
    moves = store.history("reply", "production")
    assert [move.version for move in moves] == [1, 2, 3, 2, 1]
    assert [(move.who, move.why) for move in moves[3:]] == [("ann", "worse on Mondays"), ("", "rollback")]
    with pytest.raises(PromptmillError, match='no alias "staging"'):
        store.rollback("reply", "staging")


def test_a_rollback_after_a_new_promotion_skips_the_version_that_was_taken_off(address: str) -> None:
    store = a_store(address, versions=2)
    store.publish(SmallPrompt("reply", "text 3"), PASSED)
    store.rollback("reply")
    store.promote("reply", 3)
    assert store.rollback("reply") == 1
