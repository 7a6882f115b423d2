"""What other processes do to a store, as functions that a fork server runs; each says when it starts."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any
from uuid import uuid4

from store_builders import PASSED, SmallPrompt

from prompt_core.errors import PromptmillError
from prompt_core.store import PromptStore

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["publishers", "s3fs"])
_STEPS = {"open", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.listdir", "os.scandir"}


def started(target: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """A process of its own that runs a function of this module, with the environment of this one."""
    process = context.Process(target=_with_environment, args=(dict(os.environ), target, arguments), daemon=True)
    process.start()
    return process


def _with_environment(environment: dict[str, str], target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    target(*arguments)


def publish_on_and_on(address: str, name: str, started: Event) -> None:
    """Publish, promote, roll back and withdraw until somebody kills the process."""
    store = PromptStore(address)
    store.list()
    started.set()
    while True:
        number = store.publish(SmallPrompt(name, uuid4().hex), PASSED, who="kate", why="because")
        store.promote(name, number)
        store.promote(name, number, alias="candidate")
        if number % 3 == 0:
            store.rollback(name)
            store.withdraw(name, "candidate", why="because")


def publish_in_turn(address: str, name: str, who: str, rounds: int, together: Barrier, claims: Any) -> None:
    """In each round publish one prompt of one's own and one that the other publishes too, and move the same alias as the other."""
    store = PromptStore(address)
    for number in range(rounds):
        together.wait(timeout=60)
        for text in (f"{who} {number}", f"both {number}"):
            version = store.publish(SmallPrompt(name, text), PASSED, who=who)
            claims.put((text, version))
        own = store.publish(SmallPrompt(name, f"{who} {number}"), PASSED)
        store.promote(name, own, who=who, force=True, why="my turn")
        store.promote(name, own, alias=f"{who}-{number}", who=who)


def promote_at_random(address: str, seed: int, moves: int) -> None:
    """Move `production` to versions that may be removed at the same time; a refusal is fine."""
    store, chance = PromptStore(address), random.Random(seed)
    for _ in range(moves):
        try:
            store.promote("reply", chance.choice(store.list()[0].versions), force=True, why="at random")
        except PromptmillError as error:
            if "there is no version" not in str(error):
                raise


def die_at(step: int, address: str, action: str) -> None:
    """Do something to a store and die before the given step that touches the disk; with too large a step, do all of it."""
    store = PromptStore(Path(address))
    _before_step(step, address, lambda: os._exit(9))
    if action == "publish":
        store.promote("reply", store.publish(SmallPrompt("reply", "new"), PASSED))
    elif action == "rollback":
        store.rollback("reply")
    elif action == "withdraw":
        store.withdraw("reply", why="a leak")
    else:
        store.gc(keep=0, grace=0, delete=True)


def promote_while_collected(step: int, address: str, reached: Event) -> None:
    """Promote the live version to a new alias; before the given step that touches the disk, collect garbage without grace."""
    store = PromptStore(Path(address))

    def collect() -> None:
        reached.set()
        PromptStore(Path(address)).gc(keep=0, grace=0, delete=True)

    _before_step(step, address, collect)
    store.promote("reply", store.list()[0].aliases["production"], alias="candidate")


def _before_step(step: int, address: str, act: Callable[[], object]) -> None:
    left = step

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in _STEPS and arguments and address in str(arguments[0]):
            left -= 1
            if left == 0:
                act()

    sys.addaudithook(count)
