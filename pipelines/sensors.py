"""Sensors: task files that appear or vanish, data that changed, and inputs that drifted."""

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import dagster as dg

from pipelines.automation import awaited, retune, runs_for
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
        description="Adds a partition for every task file that appeared; retires that of one that is gone, as soon as no run waits for it. "
        "Its published versions stay.",
    )
    def follow(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        registered = context.instance.get_dynamic_partitions(str(TASKS.name))
        there = [file.key for file in find_task_files(folder)]
        if registered and not there:
            return dg.SkipReason(f"No task file in {folder}, which had {len(registered)}: is it mounted? All partitions stay.")
        new, absent = [key for key in there if key not in registered], set(registered) - set(there)
        held = absent & awaited(context.instance, registered) if absent else set[str]()
        if held:
            context.log.info(f"{', '.join(sorted(held))}: retired when the runs that have them end")
        gone = sorted(absent - held)
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
    # What users send may have changed before anybody noticed. Looked at once for each content of `drift.inputs`, so that inputs that
    # have drifted launch one run and not one at every tick.
    @dg.sensor(
        name="drifted_inputs",
        job=retune,
        minimum_interval_seconds=3600,
        default_status=status,
        description="Runs a task anew when what users send now (drift.inputs) is far from what its live prompt was tuned on; "
        "with data that are as they were nothing is tuned, and the look's log has the table of what drifted.",
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        store = PromptStore(store_url)

        def is_reason(key: str, task: TaskSpec, before: Fingerprint | None) -> bool | None:
            live = store.live(key)
            if live is None:
                return None
            if live.manifest.data.profile is None:
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
    is_reason: Callable[[str, TaskSpec, Fingerprint | None], bool | None],
) -> dg.SensorResult:
    """Runs for the tasks whose files hold something else than the cursor says, where that is a reason to run.

    Args:
        files: addresses of the files of a task by field.
        is_reason: asked with partition, task and the fingerprint that it had before; None where it cannot say yet and is to be asked
            again.
    """
    kept = json.loads(context.cursor or "{}")
    look = kept.get("look", 0) + 1
    seen = {key: Fingerprint(**found) for key, found in kept.get("files", {}).items()}
    registered = context.instance.get_dynamic_partitions(str(TASKS.name))
    # What cannot be looked at now, a file on a share that is not mounted, say, is compared with what was seen last.
    now = {key: found for key, found in seen.items() if key in set(registered)}
    due: list[str] = []
    for key, file in _existing(folder, registered):
        try:
            task = _loaded(file, *_state(file))
            if not (named := files(task)):
                now.pop(key, None)
                continue
            found, before = fingerprint(task, named, seen.get(key)), seen.get(key)
            changed = before is None or found.content != before.content
            reason = is_reason(key, task, before) if changed else False
            if reason is None:
                continue
            now[key] = found
            if reason:
                due.append(key)
        except (PromptmillError, OSError) as error:
            context.log.warning(f"{key}: {error}")
    # With the number of the look: data that come back to what they were are as new, and no run key is given twice.
    occasion = f"{what} {look} " + " ".join(now[key].content[:12] for key in due)[:100]
    cursor = json.dumps({"look": look, "files": {key: found.model_dump() for key, found in now.items()}})
    registered = context.instance.get_dynamic_partitions(str(TASKS.name))  # without those that were retired meanwhile
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
