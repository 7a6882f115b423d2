"""What runs by itself: tasks are retuned when their files say so, and what passed its gate is published."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import dagster as dg

from pipelines.partitions import TaskFile, find_task_files, neighbours, register
from prompt_core import PromptmillError

# Cron signs in a name: letters, digits and _ are all that Dagster takes.
_SPOKEN = str.maketrans({" ": "_", "*": "any", "/": "_per_", "-": "_to_", ",": "_and_", "#": "_nth_", "?": "_some_", "@": "_"})

# What Dagster knows of a run over several partitions: the first and the last of them.
_RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")

_ENDED = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}

# The whole chain, so that one run says why a prompt was or was not published.
retune = dg.define_asset_job(
    "retune",
    selection=dg.AssetSelection.all(),
    description="Read, split, tune, evaluate and, if the gate passes, publish the prompts of its tasks.",
)

# For prompts that were tuned or evaluated by hand. A new prompt waits for its evaluation: until then there is one of another prompt.
# As Dagster has it, an evaluation does not count where the run that made it was to go on from there; after a failed gate none does.
_updated = dg.AutomationCondition.any_deps_match(dg.AutomationCondition.newly_updated()).ignore(dg.AssetSelection.assets("tuned_prompt"))
_evaluated = dg.AutomationCondition.eager().replace("any_deps_updated", _updated)

# Alone it would publish a rejected prompt: a blocking check holds back the steps of its own run only, hence the second condition.
publish_what_passed = (_evaluated & dg.AutomationCondition.all_deps_blocking_checks_passed()).with_label("publish what passed the gate")

# A failed gate holds back every step behind it, this one too; but people want to see most of all what was rejected.
report_everything = _evaluated.with_label("report what was evaluated, passed or not")


def retune_schedules(folder: Path, timezone: str, on: bool) -> list[dg.ScheduleDefinition]:
    """A schedule for each distinct cron line among the task files. Its tick launches what says so then; tasks side by side are one fleet.

    A schedule rather than `AutomationCondition.on_cron`, which waits for new data after the tick: a task is looked at at its
    hour regardless, also to notice that a new library version changes the result.

    Args:
        folder: of the task files.
        timezone: in which their cron lines tell the hour.
        on: whether they run as soon as they are deployed.
    """
    keys: dict[str, list[str]] = defaultdict(list)
    for file in find_task_files(folder):
        if file.schedule is not None:
            keys[_one_spelling(file.schedule)].append(file.key)
    return [_schedule(cron, tasks, folder, timezone, on) for cron, tasks in keys.items()]


def runs_for(keys: Sequence[str], registered: Sequence[str], occasion: str) -> list[dg.RunRequest]:
    """Run requests for tasks: one for each group that stands side by side among all partitions.

    Args:
        keys: of the tasks.
        registered: all partitions in their order.
        occasion: what makes the run this one and no other, so that a tick that is repeated launches nothing twice.
    """
    requests = []
    for group in neighbours(keys, registered):
        run_key = f"{group[0]} {occasion}"
        if len(group) == 1:
            requests.append(dg.RunRequest(run_key, partition_key=group[0]))
            continue
        requests.append(dg.RunRequest(run_key, tags=dict(zip(_RANGE, (group[0], group[-1]), strict=True))))
    return requests


def awaited(instance: dg.DagsterInstance, registered: Sequence[str]) -> set[str]:
    """The keys in the ranges of runs that have not ended or wait to be retried, whoever launched them.

    While one of these keys is gone, a run fails for all of its tasks, or takes others that stand in its range by then.

    Args:
        registered: all partitions in their order.
    """
    unfinished = dg.RunsFilter(statuses=[status for status in dg.DagsterRunStatus if status not in _ENDED])
    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], tags={"dagster/will_retry": "true"})
    retried = [run for run in instance.get_runs(failed) if run.is_complete_and_waiting_to_retry]
    place = {key: number for number, key in enumerate(registered)}
    keys: set[str] = set()
    for run in (*instance.get_runs(unfinished), *retried):
        first, last = (place.get(run.tags.get(bound, "")) for bound in _RANGE)
        if first is not None and last is not None:
            keys.update(registered[first : last + 1])
    return keys


def _schedule(cron: str, tasks: Sequence[str], folder: Path, timezone: str, on: bool) -> dg.ScheduleDefinition:
    shown = ", ".join(tasks[:20]) + (f" and {len(tasks) - 20} more" if len(tasks) > 20 else "")

    @dg.schedule(
        name=f"retune_at_{cron.translate(_SPOKEN)}",
        cron_schedule=cron,
        execution_timezone=timezone,
        job=retune,
        description=f'Retunes every task whose file says `schedule: "{cron}"`: {shown}.',
        default_status=dg.DefaultScheduleStatus.RUNNING if on else dg.DefaultScheduleStatus.STOPPED,
    )
    def tick(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest]:
        files = find_task_files(folder)
        if not files:  # a tick without runs would look as if all were well
            raise PromptmillError(str(folder), "holds no task file, though there were some", "Is it mounted?")
        due = [file.key for file in files if _is_at(file, cron) or (file.key in tasks and _says_nothing_for_a_fault(file))]
        return runs_for(due, register(context.instance, files), context.scheduled_execution_time.isoformat())

    return tick


def _is_at(file: TaskFile, cron: str) -> bool:
    return file.schedule is not None and _one_spelling(file.schedule) == cron


def _says_nothing_for_a_fault(file: TaskFile) -> bool:
    """Whether a file has no schedule since it is broken: its task is run at its former hour all the same, to fail with the line that
    says why. Else it would never be retuned, and nobody told."""
    if file.schedule is not None:
        return False
    try:
        file.load()
    except PromptmillError:
        return True
    return False


def _one_spelling(cron: str) -> str:
    return " ".join(cron.split())
