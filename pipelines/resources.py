"""What assets are given from outside: the task files, the prompt store, and a place to show progress."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from pipelines.partitions import find_task_files
from pipelines.progress import LoggedProgress
from prompt_core import PromptmillError, PromptStore, TaskSpec


class TaskFolder(dg.ConfigurableResource):
    """The folder of task files, read anew by every step."""

    folder: str

    def load(self, key: str) -> TaskSpec:
        """The task of a partition.

        Raises:
            PromptmillError: the file is gone or is broken.
        """
        files = {file.key: file for file in find_task_files(Path(self.folder))}
        if key not in files:
            raise PromptmillError(self.folder, f'no task file is named "{key}" any more', "Restore it, or leave this partition alone.")
        return files[key].load()


class Store(dg.ConfigurableResource):
    """The store of published prompts."""

    url: str

    def open(self) -> PromptStore:
        """The store, whose folder is made on the first publication."""
        return PromptStore(self.url)


class Checkpoints(dg.ConfigurableResource):
    """Where an interrupted tuning leaves the state that a retry of its step goes on from."""

    folder: str


class RunLog(dg.ConfigurableResource):
    """Shows the progress of long steps in the run's log."""

    every_seconds: float = 5.0

    @contextmanager
    def follow(self, context: dg.AssetExecutionContext) -> Iterator[LoggedProgress]:
        """Callbacks for the work of one step."""
        yield LoggedProgress(context.log.info, self.every_seconds, context.log.debug if len(context.partition_keys) > 1 else None)
