"""Files that survive a power cut: their content and their names are on the disk when these functions return."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside and rename it: whoever reads it finds all of it, or what was there before. Of two writers one wins.

    Raises:
        OSError: it cannot be written; what was there before stays.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        make_folder(path.parent)
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, where they are not there."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def sync_all(path: Path) -> None:
    """Bring a file to the disk, or a folder with everything in it."""
    for each in (path, *path.rglob("*")):
        sync(each)


def sync(path: Path) -> None:
    """Bring a file to the disk, or the names in a folder: a new name survives a power cut only when its folder is written too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
