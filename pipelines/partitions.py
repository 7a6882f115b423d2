"""Task files as partitions: one key per file, also for a file that is broken, which then fails alone."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import dagster as dg

from prompt_core import PromptmillError, TaskSpec, load_task
from prompt_core.task_file import field_on_its_line

# Dynamic, so that a file that appears becomes a partition without a new deployment: see `sensors.py`.
TASKS = dg.DynamicPartitionsDefinition(name="tasks")


@dataclass(frozen=True)
class TaskFile:
    """A file in the task folder.

    Attributes:
        key: the partition: the task's name, or the file's where that cannot be read or is another file's.
        schedule: its cron line, None where it has none or is broken.
    """

    key: str
    path: Path
    schedule: str | None = None

    def load(self) -> TaskSpec:
        """The task as the file says now.

        Raises:
            PromptmillError: as `load_task`; its name is not this partition's; or its schedule is no cron line.
        """
        task = load_task(self.path)
        if task.name != self.key:
            what = f'"{task.name}" is not this partition\'s name, "{self.key}"'
            raise PromptmillError(f"{self.path}: name", what, "Give every task a name of its own.")
        if task.schedule is not None and not _is_cron(task.schedule):
            what = f'"{task.schedule}" is not a cron line'
            raise PromptmillError(f"{self.path}: schedule", what, 'Write minute, hour, day, month and weekday, like "0 3 * * 1".')
        return task


def find_task_files(folder: Path) -> list[TaskFile]:
    """Every YAML file of the task folder, by file name. Never raises for the content of a file.

    Of nearly every file only the lines of name and schedule are read, so that thousands of tasks do not make a code location slow to
    load. Of files with one name, that of the name has the partition: a copy beside it, which is being changed, does not go live in its
    place.
    """
    files: list[TaskFile] = []
    for path in sorted((*folder.glob("*.yaml"), *folder.glob("*.yml"))):
        try:
            state = path.stat()
            files.append(_described(path, state.st_mtime_ns, state.st_size))
        except FileNotFoundError:  # since the folder was listed
            continue
        except OSError:  # which may pass, and is looked at again
            files.append(TaskFile(path.stem, path))
    found: dict[str, TaskFile] = {}
    for file in sorted(files, key=lambda file: file.key != file.path.stem):
        key = next(key for key in (file.key, file.path.stem, file.path.name) if key not in found)
        found[key] = file if key == file.key else TaskFile(key, file.path)
    return sorted(found.values(), key=lambda file: file.path)


def register(instance: dg.DagsterInstance, files: Sequence[TaskFile]) -> list[str]:
    """Add the partitions of task files that are new to an instance, and give all of its keys in their order."""
    known = instance.get_dynamic_partitions(str(TASKS.name))
    new = [file.key for file in files if file.key not in set(known)]
    if new:
        instance.add_dynamic_partitions(str(TASKS.name), new)
    return [*known, *new]


def neighbours(keys: Sequence[str], registered: Sequence[str]) -> list[list[str]]:
    """Keys in groups that stand side by side among all that are registered: a run takes a range of partitions."""
    wanted, groups = set(keys), list[list[str]]()
    beside = False
    for key in registered:
        if key in wanted:
            groups = [*groups[:-1], [*groups[-1], key]] if beside else [*groups, [key]]
        beside = key in wanted
    return groups


@lru_cache(maxsize=10_000)
def _described(path: Path, mtime_ns: int, size: int) -> TaskFile:
    """A file as it is, read once for each state of it: a step of many tasks looks for the file of each.

    Raises:
        OSError: it cannot be read now.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return TaskFile(path.stem, path)
    name, schedule = (field_on_its_line(text, field) for field in ("name", "schedule"))
    return TaskFile(
        name if isinstance(name, str) and re.fullmatch(r"[\w\-]+", name) else path.stem,
        path,
        schedule if isinstance(schedule, str) and _is_cron(schedule) else None,
    )


@lru_cache(maxsize=1024)
def _is_cron(line: str) -> bool:
    if not line.isascii():  # digits of other scripts would do, but not in the name of a schedule
        return False
    try:
        dg.ScheduleDefinition(name="probe", target="*", cron_schedule=line)
    except dg.DagsterInvalidDefinitionError:
        return False
    return True
