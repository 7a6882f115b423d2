"""Sensors: task files that appear or vanish, data that changed, and inputs that drifted."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import dagster as dg

from pipelines.automation import awaited, retune, runs_for
from pipelines.partitions import TASKS, TaskFile, find_task_files
from prompt_core import PromptmillError, PromptStore, TaskSpec
from prompt_core.data import Fingerprint, data_files, fingerprint
from prompt_core.data.drift import drift
from prompt_core.data.read import read_inputs
from prompt_core.store.moves import PRODUCTION

T = TypeVar("T")

# Dagster ends a tick after 60 seconds, and what it found is lost.
_LOOK_SECONDS = 40
_LOOKS_AT_ONCE = 8
_GONE_REMEMBERED = 1000


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
        description="Retunes a task when its files hold something else than when they were looked at last, and one that never ran.",
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
        tables: list[str] = []

        def is_reason(key: str, task: TaskSpec, before: Fingerprint | None) -> bool | None:
            from prompt_core.export import Published

            prompt = store.live(key)
            if prompt is None:
                return None
            profile = prompt.manifest.data.profile
            if profile is None:
                return False
            new = read_inputs(task, task.locate(str(task.drift.inputs)), f"task {task.name}: drift.inputs")
            number = store.resolve(key, PRODUCTION)
            live = Published(prompt, number, store.record(key, number).evaluation)
            found = drift(profile, new, task, predicted=live.predicted)
            tables.append(f"{key}: {found.rows} inputs\n{found.table()}")
            return found.drifted

        def inputs(task: TaskSpec) -> dict[str, str] | None:
            return {"drift.inputs": task.drift.inputs} if task.drift.inputs else None

        result = _changed(context, folder, "inputs", inputs, is_reason)
        for table in tuple(tables):  # here, since a look that outlasts the tick finds its log closed
            context.log.info(table)
        return result

    return look


def _changed(
    context: dg.SensorEvaluationContext,
    folder: Path,
    what: str,
    files: Callable[[TaskSpec], dict[str, str] | None],
    is_reason: Callable[[str, TaskSpec, Fingerprint | None], bool | None],
) -> dg.SensorResult:
    """Runs for the tasks whose files hold something else than the cursor says, where that is a reason to run.

    A tick that ends before it has looked at all tasks says in the cursor where the next one goes on.

    Args:
        files: addresses of the files of a task by field; None where there is nothing to look at.
        is_reason: asked with partition, task and the fingerprint that it had before, in threads; None where it cannot say yet and is
            to be asked again.
    """
    kept = json.loads(context.cursor or "{}")
    number = kept.get("look", 0) + 1
    seen = {key: Fingerprint(**found) for key, found in kept.get("files", {}).items()}
    registered = context.instance.get_dynamic_partitions(str(TASKS.name))
    task_files = {file.key: file for file in find_task_files(folder)}

    def look(key: str) -> tuple[Fingerprint, bool] | None:
        """What a task's files hold, and whether it is a reason; None where there is nothing to look at or it cannot be said yet."""
        file, before = task_files[key], seen.get(key)
        task = _loaded(file, *_state(file))
        if (named := files(task)) is None:
            return None
        found = fingerprint(task, named, before)
        changed = before is None or found.content != before.content
        reason = is_reason(key, task, before) if changed else False
        return None if reason is None else (found, reason)

    keys = [key for key in registered if key in task_files]
    first = keys.index(kept["next"]) if kept.get("next") in keys else 0
    looks = _in_time(look, keys[first:] + keys[:first])
    registered = context.instance.get_dynamic_partitions(str(TASKS.name))  # some may have been retired meanwhile
    now = _remembered(seen, registered)
    due: list[str] = []
    for key, looked in looks.items():
        if key not in registered or looked.cancelled():
            continue
        if not looked.done():
            context.log.warning(f"{key}: its files could not be looked at within {_LOOK_SECONDS} seconds")
        elif (error := looked.exception()) is not None:  # of any kind: one task keeps no other from being looked at
            context.log.warning(f"{key}: {_line(error)}")
        elif (result := looked.result()) is not None:
            now[key], reason = result
            if reason:
                due.append(key)
    left = [key for key, looked in looks.items() if looked.cancelled()]
    if left:
        context.log.info(f"{len(left)} of {len(looks)} tasks are left for the next tick")
    # With the number of the look: data that come back to what they were are as new, and no run key is given twice.
    occasion = f"{what} {number} " + " ".join(now[key].content[:12] for key in due)[:100]
    cursor = {"look": number, "files": {key: found.model_dump() for key, found in now.items()}, "next": left[0] if left else None}
    return dg.SensorResult(run_requests=runs_for(due, registered, occasion), cursor=json.dumps(cursor))


def _remembered(seen: Mapping[str, Fingerprint], registered: Sequence[str]) -> dict[str, Fingerprint]:
    """What was seen last: of tasks that cannot be looked at now, a file on a share that is not mounted, say, and of some that are gone,
    should they come back. Those that are gone for longest stand first and are forgotten first."""
    gone = [key for key in seen if key not in registered]
    return {key: seen[key] for key in (*gone[-_GONE_REMEMBERED:], *registered) if key in seen}


def _in_time(look: Callable[[str], T], keys: Sequence[str]) -> dict[str, Future[T]]:
    """The looks at tasks that end in time, in the order of keys: several at once, and those that were not begun by then cancelled.

    One that was begun goes on by itself, and nobody waits for it.
    """
    pool = ThreadPoolExecutor(_LOOKS_AT_ONCE)
    looks = {key: pool.submit(look, key) for key in keys}
    wait(looks.values(), timeout=_LOOK_SECONDS)
    pool.shutdown(wait=False, cancel_futures=True)
    return looks


def _line(error: BaseException) -> str:
    return str(error) if isinstance(error, PromptmillError) else f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _state(file: TaskFile) -> tuple[int, int]:
    state = file.path.stat()
    return state.st_mtime_ns, state.st_size


@lru_cache(maxsize=10_000)
def _loaded(file: TaskFile, mtime_ns: int, size: int) -> TaskSpec:
    """The task of a file; of one that did not change since the last tick it is not read again."""
    return file.load()
