"""The store among processes that are killed at any moment or write at the same time, on a folder and on an S3 protocol server.

PROMPTMILL_HARDNESS=full makes 200 of each, as the promise says; without it about 20 run.
"""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest
from publishers import context, die_at, promote_at_random, promote_while_collected, publish_in_turn, publish_on_and_on, started
from store_builders import FULL, PASSED, SmallPrompt, a_store, assert_whole, text_of

from prompt_core.store import PromptStore
from prompt_core.store.filesystem import open_files

pytestmark = pytest.mark.hardness
KILLS = 200 if FULL else 10
ROUNDS = 200 if FULL else 12


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "store") if request.param == "local" else str(request.getfixturevalue("s3"))


def newest_entry(place: str, name: str) -> tuple[str, bytes] | None:
    files, folder = open_files(place), f"prompts/{name}/log"
    paths = [f"{folder}/{entry}" for entry in files.names(folder)]
    return (paths[-1], files.read_record(paths[-1])) if paths else None


def seconds_of_a_publication(store: PromptStore, times: int = 3) -> float:
    began = time.monotonic()
    for number in range(times):
        store.promote("measured", store.publish(SmallPrompt("measured", f"text {number}"), PASSED))
    return (time.monotonic() - began) / times


def test_a_publisher_that_is_killed_leaves_the_old_state_or_the_new_one(place: str) -> None:
    store, chance, published = PromptStore(place), random.Random(0), 0
    longest = 4 * seconds_of_a_publication(store)  # so that kills meet work, however slow or busy the machine is
    for kill in range(KILLS):
        name = f"reply{kill // 5}"
        before = newest_entry(place, name)
        running = context.Event()
        publisher = started(publish_on_and_on, place, name, running)
        assert running.wait(timeout=60)
        time.sleep(chance.uniform(0, longest))
        publisher.kill()
        publisher.join()
        assert publisher.exitcode == -9
        assert before is None or open_files(place).read_record(before[0]) == before[1]
        if kill % 5 == 4:
            number = store.publish(SmallPrompt(name, "after the last kill"), PASSED)
            store.promote(name, number)
            assert_whole(store, name)
            published += number
            store.gc(name, grace=0, delete=True)
            assert_whole(store, name)
            assert not store.gc(name, grace=0).leftovers
    assert published > KILLS // 2
    assert not open_files(place).half_written()


def test_two_publishers_lose_and_mix_nothing(place: str) -> None:
    store = PromptStore(place)
    for part in range(-(-ROUNDS // 20)):
        name, rounds = f"reply{part}", min(20, ROUNDS - 20 * part)
        together, claims = context.Barrier(2), context.SimpleQueue()
        publishers = [started(publish_in_turn, place, name, who, rounds, together, claims) for who in ("ann", "bob")]
        found = [claims.get() for _ in range(4 * rounds)]
        for publisher in publishers:
            publisher.join(timeout=60)
            assert publisher.exitcode == 0
        (summary,) = (summary for summary in store.list() if summary.name == name)
        assert summary.versions == tuple(range(1, 3 * rounds + 1))  # one of each one's own, one that both published
        assert len({version for _, version in found}) == 3 * rounds
        for text, version in sorted(found)[:: 1 if FULL else 3]:
            assert text_of(store, version, name) == text
        assert set(summary.aliases) == {"production"} | {f"{who}-{number}" for who in ("ann", "bob") for number in range(rounds)}
        moves = store.history(name, "production")
        assert sorted(move.version for move in moves) == sorted({version for text, version in found if not text.startswith("both")})
        assert [move.before for move in moves] == [None, *(move.version for move in moves[:-1])]
        assert store.verify(name).problems == ()
    assert not open_files(place).half_written()


def test_garbage_is_collected_while_others_publish(place: str) -> None:
    store, running = a_store(place, versions=3), context.Event()
    publisher = started(publish_on_and_on, place, "reply", running)
    assert running.wait(timeout=60)
    until = time.monotonic() + (10 if FULL else 2)
    while time.monotonic() < until:
        store.gc(keep=0, grace=3600, delete=True)
    assert publisher.is_alive()
    publisher.kill()
    publisher.join()
    assert_whole(store)
    assert len(store.list()[0].versions) > 3


def test_an_alias_never_stands_for_a_version_that_is_being_removed(place: str) -> None:
    for round_ in range(10 if FULL else 2):
        address = f"{place}/{round_}"
        store = a_store(address, versions=8)
        movers = [started(promote_at_random, address, seed, 15) for seed in range(2)]
        while any(mover.is_alive() for mover in movers):
            store.gc(keep=0, grace=0, delete=True)
            text_of(store, "production")
            store.publish(SmallPrompt("reply", f"more {time.monotonic()}"), PASSED)
        assert [mover.exitcode for mover in movers] == [0, 0]
        assert_whole(store)


def test_a_promotion_goes_through_before_whichever_of_its_steps_garbage_is_collected(tmp_path: Path) -> None:
    a_store(tmp_path / "before", versions=3)
    for step in range(1, 200):
        folder, reached = tmp_path / f"step{step}", context.Event()
        shutil.copytree(tmp_path / "before", folder)
        mover = started(promote_while_collected, step, str(folder), reached)
        mover.join(timeout=60)
        assert mover.exitcode == 0
        assert_whole(PromptStore(folder))
        assert PromptStore(folder).list()[0].aliases == {"production": 3, "candidate": 3}
        assert not open_files(folder).half_written()
        if not reached.is_set():
            break
    assert step > 5


@pytest.mark.parametrize("action", ["publish", "rollback", "withdraw", "gc"])
def test_a_process_that_dies_before_any_step_on_the_disk_leaves_a_whole_store(tmp_path: Path, action: str) -> None:
    a_store(tmp_path / "before", versions=3)
    outcomes = set()
    for step in range(1, 200):
        folder = tmp_path / f"step{step}"
        shutil.copytree(tmp_path / "before", folder)
        process = started(die_at, step, str(folder), action)
        process.join(timeout=60)
        store = PromptStore(folder)
        assert_whole(store)
        (found,) = store.list()
        outcomes.add((found.versions, found.aliases.get("production")))
        number = store.publish(SmallPrompt("reply", "afterwards"), PASSED)
        store.promote("reply", number)
        store.gc(grace=0, delete=True)
        assert_whole(store)
        assert not open_files(folder).half_written() and not store.gc(grace=0).leftovers
        if process.exitcode == 0:
            break
        assert process.exitcode == 9
    old = ((1, 2, 3), 3)
    states = {
        "publish": {old, ((1, 2, 3, 4), 3), ((1, 2, 3, 4), 4)},
        "rollback": {old, ((1, 2, 3), 2)},
        "withdraw": {old, ((1, 2, 3), None)},
        "gc": {old, ((3,), 3)},
    }
    assert outcomes == states[action]
    assert step > 5
