"""Compiles the kernels for cards that are not there, and reports what each would use. Needs no GPU.

    python -m prefix_attention.fused.compile_check sm_90 gfx942 --dims 64 128 --kernels forward dkv

One JSON object per line: arch, kernel, dim, shared (bytes), shared_limit, spills (bytes stored), registers,
tensor_cores. Exit status 1 if shared memory does not fit, tensor cores are unused, or a kernel spills more than
`ALLOWED_SPILLS` says. Not under TRITON_INTERPRET=1, which replaces the kernels.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource

from .backward import delta_kernel, dkv_kernel, dq_kernel
from .configs import Config, config
from .forward import forward_kernel
from .reduce import reduce_kernel

SHARED_LIMIT = {
    "sm_80": 166_912,
    "sm_86": 101_376,
    "sm_89": 101_376,
    "sm_120": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "gfx942": 65_536,
}
KERNELS = {"forward": forward_kernel, "dq": dq_kernel, "dkv": dkv_kernel, "reduce": reduce_kernel, "delta": delta_kernel}
ALLOWED_SPILLS = {("sm_86", "dq", 256): 4}  # (arch, kernel, dim) -> bytes; one register outside the loops
_TENSOR_CORES = {"sm_80": r"mma\.sync", "sm_90": r"wgmma", "sm_100": r"tcgen05", "gfx942": r"v_mfma"}

_BF16 = {"q", "k", "v", "prefix_k", "prefix_v", "sinks", "out", "grad", "dq", "dk", "dv"}
_FLOAT = {"lse", "delta", "partial_dk", "partial_dv"}
_SCALARS = {"tokens": "i32", "window": "i32", "rows_times_heads": "i32", "scale": "fp32", "softcap": "fp32"}


def check(arch: str, kernel: str, dim: int, tiling: Config | None = None, **flags: bool) -> dict[str, Any]:
    """Compile one kernel in bfloat16 with 8 heads and 2 KV heads, as the launcher would on that card."""
    tiling = tiling or (config(arch, kernel, 2, dim) if kernel in ("forward", "dq", "dkv") else Config(64, _block(arch, dim), 4, 3))
    function = KERNELS[kernel]
    constants: dict[str, Any] = {
        "HEADS": 8, "KV_HEADS": 2, "D": dim, "BLOCK_D": max(16, triton.next_power_of_2(dim)),
        "ROWS": tiling.rows, "KEYS": tiling.keys, "PART": 16, "PREFIX": False, "BIDIRECTIONAL": False,
        "HAS_WINDOW": False, "HAS_CAP": False, "HAS_SINKS": False, "UPCAST": False, **flags,
    }  # fmt: skip
    names = function.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    signature = {name: "constexpr" if name in constants else _type(name) for name in names}
    aligned: dict[Any, Any] = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": tiling.warps, "num_stages": tiling.stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=_target(arch), options=options)
    text = compiled.asm["amdgcn" if arch.startswith("gfx") else "ptx"]
    return {
        "arch": arch,
        "kernel": kernel,
        "dim": dim,
        "tiling": [tiling.rows, tiling.keys, tiling.warps, tiling.stages],
        "flags": [name for name, value in flags.items() if value],
        "shared": compiled.metadata.shared,
        "shared_limit": SHARED_LIMIT[arch],
        "tensor_cores": len(re.findall(_TENSOR_CORES.get(arch, r"mma\.sync"), text)),
        **(_amd_registers(text) if arch.startswith("gfx") else _nvidia_registers(text, int(arch[3:]))),
    }


def complaints(report: dict[str, Any]) -> list[str]:
    """What would keep this kernel from running well on that card."""
    found = []
    if report["shared"] > report["shared_limit"]:
        found.append(f"shared memory {report['shared']} > {report['shared_limit']}")
    if report["kernel"] in ("forward", "dq", "dkv") and not report["tensor_cores"]:
        found.append("no tensor-core instruction")
    allowed = ALLOWED_SPILLS.get((report["arch"], report["kernel"], report["dim"]), 0)
    if report["spills"] > allowed:
        found.append(f"{report['spills']} bytes spilled, {allowed} allowed")
    return found


def _block(arch: str, dim: int) -> int:
    return config(arch, "dkv", 2, dim).keys


def _type(name: str) -> str:
    if name in _SCALARS:
        return _SCALARS[name]
    return "*bf16" if name in _BF16 else "*fp32" if name in _FLOAT else "*i32"


def _target(arch: str) -> GPUTarget:
    return GPUTarget("hip", arch, 64) if arch.startswith("gfx") else GPUTarget("cuda", int(arch[3:]), 32)


def _nvidia_registers(ptx: str, capability: int) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [get_ptxas(capability).path, "-v", "--regAllocOptLevel=2", f"--gpu-name={sm_arch_from_capability(capability)}"]
        log = subprocess.run([*command, str(source), "-o", f"{source}.o"], capture_output=True, text=True, check=True).stderr
    spills = sum(map(int, re.findall(r"(\d+) bytes spill stores", log)))
    return {"spills": spills, "registers": max(map(int, re.findall(r"Used (\d+) registers", log)))}


def _amd_registers(assembly: str) -> dict[str, int]:
    spills = sum(map(int, re.findall(r"\.vgpr_spill_count:\s+(\d+)", assembly))) * 4
    return {"spills": spills, "registers": max(map(int, re.findall(r"\.vgpr_count:\s+(\d+)", assembly)))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archs", nargs="+", choices=sorted(SHARED_LIMIT))
    parser.add_argument("--dims", nargs="+", type=int, default=[64, 128])
    parser.add_argument("--kernels", nargs="+", choices=sorted(KERNELS), default=sorted(KERNELS))
    arguments = parser.parse_args()
    failed = False
    for arch in arguments.archs:
        for kernel in arguments.kernels:
            for dim in arguments.dims:
                report = check(arch, kernel, dim)
                report["complaints"] = complaints(report)
                failed |= bool(report["complaints"])
                sys.stdout.write(json.dumps(report) + "\n")
                sys.stdout.flush()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
