"""Checkpoints of a fleet on disk: one file, written beside and renamed, from which the same bits go on."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from prompt_core.durable import write_whole

_log = logging.getLogger("promptmill")


@dataclass(frozen=True)
class Snapshot:
    """One member's state: tensors by name, and what is no tensor as JSON values."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def save_checkpoint(path: Path, snapshots: Sequence[Snapshot], facts: dict[str, Any]) -> None:
    """Write the fleet's state. A disk that is full costs a warning and this checkpoint, not the run nor the one before."""
    tensors = {f"{number}/{name}": tensor.contiguous().cpu() for number, s in enumerate(snapshots) for name, tensor in s.tensors.items()}
    metadata = {"promptmill": json.dumps({"fleet": facts, "members": [s.facts for s in snapshots]})}
    try:
        write_whole(path, safetensors.torch.save(tensors, metadata))
    except OSError as error:
        _log.warning("checkpoint %s: cannot be written (%s). Tuning goes on without it.", path, error.strerror)


def load_checkpoint(path: Path) -> tuple[list[Snapshot], dict[str, Any]] | None:
    """What `save_checkpoint` wrote; None where there is nothing, or nothing that can be read."""
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            described = json.loads(file.metadata()["promptmill"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        _log.warning("checkpoint %s: cannot be read (%s). Tuning starts anew.", path, error)
        return None
    snapshots = []
    for number, facts in enumerate(described["members"]):
        own = f"{number}/"
        snapshots.append(Snapshot({name.removeprefix(own): t for name, t in tensors.items() if name.startswith(own)}, facts))
    return snapshots, described["fleet"]
