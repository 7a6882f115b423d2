"""The store among several processes: publishers at the same time, and one that dies at the moment of writing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from test_store import PASSED, SmallPrompt, a_store, files

from prompt_core.store import PromptStore

# Other processes import test_store by its folder, so that they publish the same kind of prompt.
PREPARED = "import sys; sys.path[:0] = sys.argv[1:3]; from test_store import *; store = PromptStore(sys.argv[3])\n"


def started(store: PromptStore, script: str, *arguments: str) -> subprocess.Popen[str]:
    here = Path(__file__).resolve()
    command = [sys.executable, "-c", PREPARED + script, str(here.parent), str(here.parents[1]), str(store.root), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


PUBLISH = """
for i in range(25):
    for text in (f"{sys.argv[4]} {i}", f"both {i}"):
        print(text, store.publish(SmallPrompt("reply", text), PASSED), sep="=")
    store.promote("reply", 1, alias=f"{sys.argv[4]}-{i}")
"""


def test_two_publishers_lose_and_mix_nothing(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    publishers = [started(store, PUBLISH, who) for who in ("ann", "bob")]
    outputs = [publisher.communicate(timeout=60)[0].splitlines() for publisher in publishers]
    assert [publisher.returncode for publisher in publishers] == [0, 0]
    (summary,) = store.list()
    assert summary.versions == tuple(range(1, 76))  # 25 of each one's own, 25 that both published
    claims = [line.split("=") for output in outputs for line in output]
    for text, version in claims:
        assert (store.path("reply", version) / "text").read_text() == text
    assert len({version for _, version in claims}) == 75
    assert set(summary.aliases) == {f"{who}-{i}" for who in ("ann", "bob") for i in range(25)}
    assert not [name for name in files(store.root) if "/." in name and not name.endswith(".lock")]


@pytest.mark.parametrize(
    ("step", "action"),
    [
        ("os.link", "store.publish(SmallPrompt('reply', 'new'), PASSED)"),
        ("Path.rename", "store.publish(SmallPrompt('reply', 'new'), PASSED)"),
        ("Path.replace", "store.rollback('reply')"),
    ],
)
def test_a_process_that_dies_at_a_commit_leaves_the_old_state(tmp_path: Path, step: str, action: str) -> None:
    store = a_store(tmp_path, versions=2)
    process = started(store, f"import os; {step} = lambda *_: os._exit(9); {action}")
    process.communicate(timeout=60)
    assert process.returncode == 9
    assert store.list()[0].versions == (1, 2)
    assert store.resolve("reply", "production") == 2
    assert store.publish(SmallPrompt("reply", "new"), PASSED) == 3
    store.promote("reply", 3)
    assert store.rollback("reply") == 2
