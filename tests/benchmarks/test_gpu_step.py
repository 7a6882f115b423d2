"""The script for a GPU, as far as a CPU reaches: its checks, its turns and its one line where there is no GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_step.py"


def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


@pytest.mark.slow
def test_it_checks_and_times_every_part_on_a_small_shape() -> None:
    done = ran("--device", "cpu", "--tiny", "--eager", "--rounds", "1")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    starts = ["ours against float32", "peft against float32", "PEFT ", "standing step: ", "4 prompts: "]
    assert [line[: len(start)] for line, start in zip(done.stdout.splitlines(), starts, strict=True)] == starts


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    done = ran()
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "gpu_step: there is no CUDA GPU here; `--device cpu --tiny` runs the same logic on a small shape"
    )
