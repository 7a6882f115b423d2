"""The Triton kernels without a GPU: numbers under the interpreter, resources by ahead-of-time compilation.

Both need a process of their own: the interpreter replaces the kernels when triton is imported.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from prefix_attention import PromptForest, prefix_attention

pytest.importorskip("triton")
HERE = Path(__file__).parent


def test_the_kernels_agree_with_float64_under_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE / "interpreted.py")]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_the_kernels_compile_for_a_card_that_is_not_there():
    command = [sys.executable, "-m", "prefix_attention.fused.compile_check", "sm_90", "--dims", "64", "--kernels", "forward", "dkv"]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [report["kernel"] for report in reports] == ["forward", "dkv"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_a_clear_error():
    q = torch.zeros(3, 2, 16)
    with pytest.raises(ValueError, match="backend is 'triton', but q is on cpu: move the tensors to a CUDA or ROCm GPU"):
        prefix_attention(q, q, q, PromptForest.from_segments([3], [-1]), backend="triton")
