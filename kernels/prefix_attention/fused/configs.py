"""Which tile sizes a kernel runs with: a table, never a measurement at run time, for the choice changes bits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

TABLE = Path(__file__).with_name("configs.json")
INTERPRETED = "interpreter"  # the architecture that small tests run on


@dataclass(frozen=True)
class Config:
    """Rows of a query tile, keys of a key block, warps and pipeline stages."""

    rows: int
    keys: int
    warps: int
    stages: int


@lru_cache
def config(arch: str, kernel: str, element_bytes: int, dim: int) -> Config:
    """The first entry that fits: for the architecture itself, then for its family's, then for any.

    Fallback order: sm_8x and sm_12x look at sm_86 (little shared memory) where it has an entry, then at sm_80; sm_10x
    at sm_100, gfx9 at gfx942; everything then at "any", whose tiles were chosen for sm_90. kernel: "forward", "dq" or
    "dkv". Raises ValueError if the table has nothing (a damaged table: "any" covers head dimensions to 256).
    """
    if arch == INTERPRETED:
        return Config(rows=32, keys=32, warps=1, stages=1)
    entries = json.loads(TABLE.read_text())["entries"]
    family = next((known for prefix, known in _FAMILIES.items() if arch.startswith(prefix)), ())
    for candidate in (arch, *family, "any"):
        for entry in entries:
            fits = entry["kernel"] == kernel and entry["bytes"] == element_bytes and dim <= entry["dim"]
            if entry["arch"] == candidate and fits:
                return Config(entry["rows"], entry["keys"], entry["warps"], entry["stages"])
    raise ValueError(f"{TABLE.name} has no entry for kernel {kernel}, {element_bytes} bytes, head dimension {dim}")


_FAMILIES = {
    "sm_80": (),
    "sm_8": ("sm_86", "sm_80"),
    "sm_12": ("sm_86", "sm_80"),
    "sm_10": ("sm_100",),
    "gfx9": ("gfx942",),
}


def arch_of(device: torch.device) -> str:
    """The name in the table, sm_90 or gfx942, of a GPU; the interpreter's stand-in for the CPU."""
    if device.type == "cpu":
        return INTERPRETED
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"
