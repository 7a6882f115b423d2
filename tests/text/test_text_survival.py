"""A search that is killed goes on: nothing is paid for twice, and it comes to the same prompt."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "searched.py"


def journal_lines(folder: Path) -> list[bytes]:
    return [line for path in folder.glob("*.jsonl") for line in path.read_bytes().splitlines()]


def start(model: Path, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, str(SCRIPT), str(model), str(folder)], stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_search_that_is_killed_three_times_pays_once_and_finds_the_same(llama_folder: Path, tmp_path: Path) -> None:
    whole = start(llama_folder, tmp_path / "whole")
    digest = whole.communicate(timeout=120)[0].strip()
    planned = len(journal_lines(tmp_path / "whole"))
    assert len(digest) == 64 and planned > 100
    for share in (0.2, 0.5, 0.8):
        going = start(llama_folder, tmp_path / "killed")
        while going.poll() is None and len(journal_lines(tmp_path / "killed")) < share * planned:
            time.sleep(0.002)
        going.send_signal(signal.SIGKILL)
        going.wait()
    before = len(journal_lines(tmp_path / "killed"))
    resumed = start(llama_folder, tmp_path / "killed")
    assert resumed.communicate(timeout=120)[0].strip() == digest
    lines = journal_lines(tmp_path / "killed")
    keys = Counter(json.loads(line)[0] for line in lines)
    assert max(keys.values()) == 1 and 0 < before <= len(lines) == planned
    again = start(llama_folder, tmp_path / "killed")
    assert again.communicate(timeout=120)[0].strip() == digest and len(journal_lines(tmp_path / "killed")) == planned
