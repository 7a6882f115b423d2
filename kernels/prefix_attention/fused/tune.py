"""Measures tile sizes on the GPU at hand and writes the best into configs.json. Run it by hand, never at run time.

python -m prefix_attention.fused.tune --dims 64 128
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from unittest import mock

import torch
import triton

from ..api import prefix_attention
from ..forest import PromptForest
from . import launch
from .configs import TABLE, Config, arch_of, config

CANDIDATES = [
    Config(rows, keys, warps, stages)
    for rows, keys, warps, stages in itertools.product((32, 64, 128), (32, 64, 128), (4, 8), (1, 2, 3))
    if rows * keys <= 128 * 128
]


def measured(kernel: str, tiling: Config, dim: int, dtype: torch.dtype) -> float:
    """Milliseconds of forward (for "forward") or of forward + backward, with `tiling` in the place of the table's.

    Two shapes count alike: many short examples behind one prefix, and a few long ones.
    """

    def chosen(arch: str, name: str, element_bytes: int, head_dim: int) -> Config:
        return tiling if name == kernel else config(arch, name, element_bytes, head_dim)

    with mock.patch.object(launch, "config", chosen):
        return sum(_milliseconds(_step(lengths, kernel, dim, dtype)) for lengths in ([40] * 400, [2048] * 8))


def _milliseconds(step: Callable[[], object]) -> float:
    return float(triton.testing.do_bench(step, return_mode="median"))


def _step(lengths: list[int], kernel: str, dim: int, dtype: torch.dtype) -> Callable[[], object]:
    forest = PromptForest.from_segments(lengths, [-1] * len(lengths), prefix_lengths=[128]).to("cuda")
    rows = forest.num_tokens
    shapes = [(rows, 32), (rows, 8), (rows, 8), (128, 8), (128, 8)]
    inputs = [torch.randn(n, heads, dim, device="cuda", dtype=dtype, requires_grad=True) for n, heads in shapes]
    q, k, v, prefix_k, prefix_v = inputs
    grad = torch.randn_like(q)
    if kernel == "forward":
        return lambda: prefix_attention(q.detach(), k, v, forest, prefix_k, prefix_v)
    return lambda: torch.autograd.grad(prefix_attention(q, k, v, forest, prefix_k, prefix_v), inputs, grad)


def best(kernel: str, dim: int, dtype: torch.dtype) -> tuple[Config, float]:
    """The fastest candidate that fits the card."""
    times: dict[Config, float] = {}
    for tiling in CANDIDATES:
        try:
            times[tiling] = measured(kernel, tiling, dim, dtype)
        except triton.runtime.errors.OutOfResources:
            continue
    fastest = min(times, key=times.__getitem__)
    return fastest, times[fastest]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("tune: torch sees no CUDA or ROCm GPU here; run this on the card that the table is for\n")
        return 2
    dtype: torch.dtype = getattr(torch, arguments.dtype)
    arch = arch_of(torch.device("cuda"))
    table = json.loads(TABLE.read_text())
    for dim, kernel in itertools.product(sorted(arguments.dims), ("forward", "dq", "dkv")):
        tiling, milliseconds = best(kernel, dim, dtype)
        place = {"arch": arch, "kernel": kernel, "bytes": dtype.itemsize, "dim": dim}
        tiles = {"rows": tiling.rows, "keys": tiling.keys, "warps": tiling.warps, "stages": tiling.stages}
        entry = place | tiles | {"measured_on": torch.cuda.get_device_name(), "ms": round(milliseconds, 4)}
        sys.stdout.write(json.dumps(entry) + "\n")
        others = [known for known in table["entries"] if any(known[name] != value for name, value in place.items())]
        # smaller head dimensions first: the first entry that is large enough is taken
        table["entries"] = sorted(
            [entry, *others], key=lambda known: (known["arch"] == "any", known["arch"], known["kernel"], known["bytes"], known["dim"])
        )
    lines = ",\n".join(f"    {json.dumps(entry)}" for entry in table["entries"])
    TABLE.write_text(f'{{\n  "comment": {json.dumps(table["comment"])},\n  "entries": [\n{lines}\n  ]\n}}\n')
    return 0


if __name__ == "__main__":
    sys.exit(main())
