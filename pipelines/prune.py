"""The job `prune_values`: what assets were before, and no task needs any more, is removed from the disk.

New data leave a new object beside the old ones each time, see `pipelines.io_managers`; a tuning that was killed and whose inputs
changed before it was started again leaves its checkpoint, and every search for words its journal, with what an endpoint was paid
for. So do the values of a task whose file is gone. The store of published prompts is another place: `promptmill gc`.
"""

import os
import shutil
import time
import uuid
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import dagster as dg
from pydantic import Field

from pipelines.io_managers import digests_in, digests_noted, named_after
from pipelines.partitions import TASKS, find_task_files

_DAY = 86_400.0  # seconds; nobody writes one value for so long
_ASIDE = ".old-"  # what a prune has taken away and not removed yet
_HALF_WRITTEN = (_ASIDE, ".new-")


@dataclass(frozen=True)
class Pruned:
    """What was removed.

    Attributes:
        objects: values of assets.
        others: notes of what was made of inputs or is the value of a task that is gone, checkpoints and journals, lists of who failed in
            a run, half-written values.
        bytes: of all of them.
    """

    objects: int
    others: int
    bytes: int


class PruneConfig(dg.Config):
    """What counts as old."""

    days: float = Field(default=90.0, ge=1.0, description="since something was made or was last the value of a task")


def prune_job(storage: Path, task_folder: Path) -> dg.JobDefinition:
    """The job for the values, under a folder, of the tasks in another."""

    @dg.op(out=dg.Out(dg.Nothing), description="Removes what no task needs and what is older than `days`.")
    def remove_old_values(context: dg.OpExecutionContext, config: PruneConfig) -> None:
        there = {file.key for file in find_task_files(task_folder)}
        known = {*there, *context.instance.get_dynamic_partitions(str(TASKS.name))} if there else None  # the folder may not be mounted
        removed = prune(storage, config.days, known)
        context.log.info(f"{removed.objects:,} values and {removed.others:,} other things removed, {removed.bytes:,} bytes")
        context.add_output_metadata({"values": removed.objects, "others": removed.others, "bytes": removed.bytes})

    @dg.job(description="Frees the disk of what assets were before. Values that tasks have now stay, however old.")
    def prune_values() -> None:
        remove_old_values()

    return prune_values


def prune(storage: Path, days: float, tasks: Collection[str] | None = None) -> Pruned:
    """Remove what is older than so many days: values that no task has, and what else a deployment leaves behind.

    Args:
        tasks: the partitions that there are; None where nobody knows, and the values of all stay.

    Safe beside runs: an object is set aside, then the notes are read again; whoever has pointed at it meanwhile either stands in
    them, and it comes back, or finds it gone and writes it again (`ContentAddressed`).
    """
    before, removed, sizes = time.time() - days * _DAY, 0, 0
    others = [] if tasks is None else [note for note in _retired_notes(storage, tasks) if _changed(note) < before]
    sizes += sum(map(_remove, others))
    left = [
        *_old_notes(storage, before),
        *(path for path in _entries(storage / "fleets") if _changed(path) < before),
        *(path for path in _entries(storage / "checkpoints") if _changed(path) < before),
    ]
    sizes, others = sizes + sum(map(_remove, left)), [*others, *left]
    for folder in _entries(storage / "objects"):
        left = [path for path in _entries(folder) if path.name.startswith(_HALF_WRITTEN) and _changed(path) < time.time() - _DAY]
        sizes, others = sizes + sum(map(_remove, left)), [*others, *left]
        used = digests_noted(storage, folder.name)
        unused = [path for path in _entries(folder) if not path.name.startswith(".") and named_after(path) not in used]
        aside = {path: moved for path in unused if _changed(path) < before and (moved := _set_aside(path))}
        used = digests_noted(storage, folder.name) if aside else used
        for path, moved in aside.items():
            if named_after(path) in used and not path.exists():
                moved.rename(path)
            else:
                sizes, removed = sizes + _remove(moved), removed + 1
    return Pruned(removed, len(others), sizes)


def _retired_notes(storage: Path, tasks: Collection[str]) -> list[Path]:
    """Of the values of partitions that are gone."""
    notes = (storage / "partitions").glob("*/*.digest")
    return sorted(note for note in notes if unquote(note.name.removesuffix(".digest")) not in tasks)


def _old_notes(storage: Path, before: float) -> Iterable[Path]:
    """Of what was made of which inputs, but for what tasks have now: their next run with the same inputs finds it there."""
    for folder in _entries(storage / "remembered"):
        current = digests_noted(storage, folder.name, remembered=False)
        yield from (note for note in _entries(folder) if _changed(note) < before and not digests_in([note]) & current)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # a run has finished with it
        return float("inf")


def _set_aside(path: Path) -> Path | None:
    moved = path.with_name(f"{_ASIDE}{uuid.uuid4().hex}")
    try:
        path.rename(moved)
    except FileNotFoundError:
        return None
    os.utime(moved)  # whoever prunes at the same time takes it for work in progress
    return moved


def _remove(path: Path) -> int:
    """Bytes that this freed."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files if file.exists())
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return size
