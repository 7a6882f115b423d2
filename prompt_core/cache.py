"""The user's cache: what was computed is kept there, and is computed again where it cannot be kept."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

import platformdirs

from prompt_core.durable import write_whole

_log = logging.getLogger("promptmill")


def cache_folder(kind: str) -> Path:
    """Where things of a kind are kept; it need not exist."""
    return platformdirs.user_cache_path("promptmill") / kind


def keep(file: Path, content: bytes) -> None:
    """Write a file, whole or not at all. A full disk, or a folder that cannot be written, costs a warning and what is kept, not the run."""
    try:
        write_whole(file, content)
    except OSError as error:
        _warn(file.parent, str(error.strerror))


def kept(file: Path) -> bytes | None:
    """What `keep` wrote; None where there is nothing, or nothing that can be read."""
    try:
        return file.read_bytes()
    except OSError:
        return None


@cache
def _warn(folder: Path, reason: str) -> None:
    _log.warning("cache %s: cannot be written (%s). What belongs there will be computed again.", folder, reason)
