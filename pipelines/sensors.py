"""Sensors: task files that appear or vanish, data that changed, and inputs that drifted."""

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import dagster as dg

from pipelines.automation import retune, runs_for
from pipelines.partitions import TASKS, TaskFile, find_task_files
from prompt_core import PromptmillError, PromptStore, TaskSpec
from prompt_core.data import Fingerprint, data_files, fingerprint
from prompt_core.data.drift import drift
from prompt_core.data.table import read_table


def build_sensors(folder: Path, store_url: str, on: bool) -> list[dg.SensorDefinition]:
    """All sensors over the task files of a folder.

    Args:
        store_url: of the published prompts, whose examples new inputs are compared with.
        on: whether those that launch runs do so as soon as they are deployed.
    """
    status = dg.DefaultSensorStatus.RUNNING if on else dg.DefaultSensorStatus.STOPPED
    return [_task_files(folder), _new_data(folder, status), _drifted_inputs(folder, store_url, status)]


def _task_files(folder: Path) -> dg.SensorDefinition:
    # So that a new task needs no new deployment. It runs everywhere: it launches nothing, and without it there is nothing to launch.
    @dg.sensor(
        name="task_files",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
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


def _new_data(folder: Path, status: dg.DefaultSensorStatus) -> dg.SensorDefinition:
    # By content, since files are touched and copied without a change; and on a change only, since a retuning that fails is
    # not to be launched again at every tick.
    @dg.sensor(
        name="new_data",
        job=retune,
        minimum_interval_seconds=300,
        default_status=status,
        description="Retunes a task when its data files hold something else than when it was looked at last, and one that never ran.",
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        ran = context.instance.get_materialized_partitions(dg.AssetKey("examples"))

        def is_reason(key: str, task: TaskSpec, before: Fingerprint | None) -> bool:
            return before is not None or key not in ran

        return _changed(context, folder, "data", data_files, is_reason)

    return look


def _drifted_inputs(folder: Path, store_url: str, status: dg.DefaultSensorStatus) -> dg.SensorDefinition:
    # A prompt ages while its data file stays as it is. Looked at once for each content of `drift.inputs`, so that inputs that
    # have drifted launch one run and not one at every tick.
    @dg.sensor(
        name="drifted_inputs",
        job=retune,
        minimum_interval_seconds=3600,
        default_status=status,
        description="Retunes a task when what users send now (drift.inputs) is far from what its live prompt was tuned on.",
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        store = PromptStore(store_url)

        def is_reason(key: str, task: TaskSpec, before: Fingerprint | None) -> bool:
            live = store.live(key)
            if live is None or live.manifest.data.profile is None:
                return False
            address = task.locate(str(task.drift.inputs))
            found = drift(live.manifest.data.profile, read_table(address), task, address)
            context.log.info(f"{key}: {found.rows} inputs\n{found.table()}")
            return found.drifted

        return _changed(context, folder, "inputs", lambda task: {"drift.inputs": task.drift.inputs} if task.drift.inputs else {}, is_reason)

    return look


def _changed(
    context: dg.SensorEvaluationContext,
    folder: Path,
    what: str,
    files: Callable[[TaskSpec], dict[str, str]],
    is_reason: Callable[[str, TaskSpec, Fingerprint | None], bool],
) -> dg.SensorResult:
    """Runs for the tasks whose files hold something else than the cursor says, where that is a reason to run.

    Args:
        files: addresses of the files of a task by field.
        is_reason: asked with partition, task and the fingerprint that it had before.
    """
    seen = {key: Fingerprint(**found) for key, found in json.loads(context.cursor or "{}").items()}
    registered = context.instance.get_dynamic_partitions(str(TASKS.name))
    now: dict[str, Fingerprint] = {}
    due: list[str] = []
    for key, file in _existing(folder, registered):
        try:
            task = _loaded(file, *_state(file))
            if named := files(task):
                now[key] = fingerprint(task, named, seen.get(key))
                if (key not in seen or now[key].content != seen[key].content) and is_reason(key, task, seen.get(key)):
                    due.append(key)
        except (PromptmillError, OSError) as error:
            context.log.warning(f"{key}: {error}")
            if key in seen:
                now[key] = seen[key]
    occasion = f"{what} " + " ".join(now[key].content[:12] for key in due)[:100]
    cursor = json.dumps({key: found.model_dump() for key, found in now.items()})
    return dg.SensorResult(run_requests=runs_for(due, registered, occasion), cursor=cursor)


def _existing(folder: Path, registered: list[str]) -> Iterator[tuple[str, TaskFile]]:
    files = {file.key: file for file in find_task_files(folder)}
    yield from ((key, files[key]) for key in registered if key in files)


def _state(file: TaskFile) -> tuple[int, int]:
    state = file.path.stat()
    return state.st_mtime_ns, state.st_size


@lru_cache(maxsize=10_000)
def _loaded(file: TaskFile, mtime_ns: int, size: int) -> TaskSpec:
    """The task of a file; of one that did not change since the last tick it is not read again."""
    return file.load()
