"""Task files as partitions: one key per file, also for a file that is broken, which then fails alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from prompt_core import PromptmillError, TaskSpec, load_task


@dataclass(frozen=True)
class TaskFile:
    """A file in the task folder.

    Attributes:
        key: the partition: the task's name, or the file's where that cannot be read or is taken.
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
            raise PromptmillError(f"{self.path}: name", what, "Give every task a name of its own and reload the code location.")
        if task.schedule is not None and not _is_cron(task.schedule):
            what = f'"{task.schedule}" is not a cron line'
            raise PromptmillError(f"{self.path}: schedule", what, 'Write minute, hour, day, month and weekday, like "0 3 * * 1".')
        return task


def find_task_files(folder: Path) -> list[TaskFile]:
    """Every YAML file of the task folder, by file name. Never raises for the content of a file."""
    found: dict[str, TaskFile] = {}
    for path in sorted((*folder.glob("*.yaml"), *folder.glob("*.yml"))):
        file = _described(path)
        key = next(key for key in (file.key, path.stem, path.name) if key not in found)
        found[key] = file if key == file.key else TaskFile(key, path)
    return list(found.values())


def task_partitions(files: Sequence[TaskFile]) -> dg.StaticPartitionsDefinition:
    """One partition per task file."""
    return dg.StaticPartitionsDefinition([file.key for file in files])


def _described(path: Path) -> TaskFile:
    try:
        task = load_task(path)
    except PromptmillError:
        return TaskFile(path.stem, path)
    return TaskFile(task.name, path, task.schedule if task.schedule and _is_cron(task.schedule) else None)


def _is_cron(line: str) -> bool:
    try:
        dg.ScheduleDefinition(name="probe", target="*", cron_schedule=line)
    except dg.DagsterInvalidDefinitionError:
        return False
    return True
