"""What every benchmark result carries: the command, the machine and the versions it ran with."""

import json
import platform
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"


def write_result(name: str, content: dict[str, Any]) -> Path:
    """Write benchmarks/results/NAME.json, beside and then renamed."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    record = {
        "command": " ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"processor": _processor(), "threads": torch.get_num_threads(), "python": platform.python_version()},
        "versions": _versions("torch", "triton", "transformers", "peft", "polars", "scikit-learn", "sacrebleu"),
        **content,
    }
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    beside.replace(path)
    return path


def result_name(model: str, data_set: str, examples: int, variant: str = "") -> str:
    """Of a quality result; a variant is another comparison on the same set and number of examples."""
    return "_".join(["quality", model, data_set, str(examples), *([variant] if variant else [])])


def parse_seeds(text: str) -> list[int]:
    """`0-4` or `0,3,7` as a list of seeds."""
    seeds: list[int] = []
    for part in text.split(","):
        low, _, high = part.partition("-")
        seeds += range(int(low), int(high or low) + 1)
    return seeds


def _versions(*packages: str) -> dict[str, str]:
    """Of those that are installed: a machine for kernels has few of them."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
