"""A search that is killed goes on: nothing is paid for twice, and it comes to the same prompt."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.text.faulty_server import serving

SCRIPT = Path(__file__).parent / "searched.py"


def journal_lines(folder: Path) -> list[bytes]:
    return [line for path in folder.glob("*.jsonl") for line in path.read_bytes().splitlines()]


@pytest.mark.slow
def test_several_processes_search_once_and_go_on_from_the_same_words(llama_folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "parallel.py"
    script.write_text(
        "import sys\nimport torch.distributed as dist\nfrom pathlib import Path\n"
        "from searched import ROWS, a_text_task\nfrom helpers import backbone_at\n"
        "from prompt_core.errors import PromptmillError\nfrom prompt_core.tuning import tune\n"
        "from prompt_core.tuning.parallel import process_group\n"
        "with process_group():\n"
        "    model, url, checkpoints = sys.argv[1], sys.argv[2], Path(sys.argv[3])\n"
        "    for url in (url, 'http://127.0.0.1:9/v1'):\n"
        "        endpoint = {'url': url, 'model': 'm', 'attempts': 1, 'timeout': 9, 'wait': 0}\n"
        "        try:\n"
        "            told = tune(a_text_task(model, endpoint=endpoint), ROWS, None, backbone_at(model), checkpoints=checkpoints).digest\n"
        "        except PromptmillError as error:\n"
        "            told = str(error)\n"
        "        with Path(f'{sys.argv[4]}.{dist.get_rank()}').open('a') as out:\n"
        "            out.write(told + '\\n')\n"
    )
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), str(llama_folder)]
    with serving([]) as served:
        done = subprocess.run(
            [*command, served.url, str(tmp_path / "c"), str(tmp_path / "told")],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
    assert done.returncode == 0, done.stderr
    asked = [json.dumps(body) for body in served.bodies]
    assert 0 < len(asked) == len(set(asked))  # one process asked each question
    told = [(tmp_path / f"told.{rank}").read_text().splitlines() for rank in (0, 1)]
    digests, errors = zip(*told, strict=True)  # of each process: a digest, then the error
    assert digests[0] == digests[1] and len(digests[0]) == 64
    assert all("9/v1" in error and "gives no answer" in error for error in errors)


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
