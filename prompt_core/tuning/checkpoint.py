"""Checkpoints of a fleet on disk: one file, written beside and renamed, from which the same bits go on."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from prompt_core.durable import write_whole

_log = logging.getLogger("promptmill")


@dataclass(frozen=True)
class Snapshot:
    """One member's state.

    Attributes:
        tensors: by name.
        facts: what is no tensor, as JSON values.
        back: where a loss that is not finite takes it from here, if not to this very state.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    back: Snapshot | None = None


def save_checkpoint(path: Path, snapshots: Sequence[Snapshot], facts: dict[str, Any]) -> None:
    """Write the fleet's state. A disk that is full costs a warning and this checkpoint, not the run nor the one before."""
    backs = {f"back {number}": s.back for number, s in enumerate(snapshots) if s.back}
    named = {str(number): s for number, s in enumerate(snapshots)} | backs
    tensors = {f"{own}/{name}": tensor.contiguous().cpu() for own, s in named.items() for name, tensor in s.tensors.items()}
    metadata = {"promptmill": json.dumps({"fleet": facts, "members": {own: s.facts for own, s in named.items()}})}
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
            members = dict(described["members"])  # a list in files of another version
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        _log.warning("checkpoint %s: cannot be read (%s). Tuning starts anew.", path, error)
        return None
    found: dict[str, Snapshot] = {}
    for own, facts in members.items():
        found[own] = Snapshot({name.partition("/")[2]: t for name, t in tensors.items() if name.partition("/")[0] == own}, facts)
    numbers = [own for own in found if own.isdecimal()]
    return [replace(found[number], back=found.get(f"back {number}")) for number in numbers], described["fleet"]
