"""Sensors: task files that appear or vanish, and data that changed."""

import json
from functools import lru_cache
from pathlib import Path

import dagster as dg

from pipelines.automation import retune, runs_for
from pipelines.partitions import TASKS, TaskFile, find_task_files
from prompt_core import PromptmillError, TaskSpec
from prompt_core.data import Fingerprint, fingerprint


def build_sensors(folder: Path, on: bool) -> list[dg.SensorDefinition]:
    """All sensors over the task files of a folder.

    Args:
        on: whether they run as soon as they are deployed.
    """
    return [_task_files(folder, on), _new_data(folder, on)]


def _status(on: bool) -> dg.DefaultSensorStatus:
    return dg.DefaultSensorStatus.RUNNING if on else dg.DefaultSensorStatus.STOPPED


def _task_files(folder: Path, on: bool) -> dg.SensorDefinition:
    # So that a new task needs no new deployment.
    @dg.sensor(
        name="task_files",
        minimum_interval_seconds=30,
        default_status=_status(on),
        description="Adds a partition for every task file that appeared; retires that of one that is gone, whose published versions stay.",
    )
    def follow(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        known = set(context.instance.get_dynamic_partitions(str(TASKS.name)))
        there = [file.key for file in find_task_files(folder)]
        new, gone = [key for key in there if key not in known], sorted(known - set(there))
        if not new and not gone:
            return dg.SkipReason(f"{len(there)} task files, as before.")
        requests = ([TASKS.build_add_request(new)] if new else []) + ([TASKS.build_delete_request(gone)] if gone else [])
        return dg.SensorResult(dynamic_partitions_requests=requests)

    return follow


def _new_data(folder: Path, on: bool) -> dg.SensorDefinition:
    # By content, since files are touched and copied without a change; and on a change only, since a retuning that fails is
    # not to be launched again at every tick.
    @dg.sensor(
        name="new_data",
        job=retune,
        minimum_interval_seconds=300,
        default_status=_status(on),
        description="Retunes a task when its data files hold something else than when it was looked at last, and one that never ran.",
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        seen = {key: Fingerprint(**found) for key, found in json.loads(context.cursor or "{}").items()}
        registered = context.instance.get_dynamic_partitions(str(TASKS.name))
        files = {file.key: file for file in find_task_files(folder)}
        ran = context.instance.get_materialized_partitions(dg.AssetKey("examples"))
        now: dict[str, Fingerprint] = {}
        changed: dict[str, str] = {}
        for key in registered:
            try:
                found = _fingerprint(files.get(key), seen.get(key))
            except PromptmillError as error:
                context.log.warning(f"{key}: {error}")
                found = seen.get(key)
            if found is None:
                continue
            now[key] = found
            if (key in seen and seen[key].content != found.content) or (key not in seen and key not in ran):
                changed[key] = found.content
        occasion = "data " + " ".join(content[:12] for content in changed.values())[:100]
        cursor = json.dumps({key: found.model_dump() for key, found in now.items()})
        return dg.SensorResult(run_requests=runs_for(list(changed), registered, occasion), cursor=cursor)

    return look


def _fingerprint(file: TaskFile | None, known: Fingerprint | None) -> Fingerprint | None:
    """Of the data that a task file names; None where there is no such file, or it names no data."""
    if file is None:
        return None
    state = file.path.stat()
    task = _loaded(file, state.st_mtime_ns, state.st_size)
    return fingerprint(task, known) if task.data.path else None


@lru_cache(maxsize=10_000)
def _loaded(file: TaskFile, mtime_ns: int, size: int) -> TaskSpec:
    """The task of a file; of one that did not change since the last tick it is not read again."""
    return file.load()
