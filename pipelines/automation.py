"""What runs by itself: tasks are retuned when their files say so, and what passed its gate is published."""

from collections import defaultdict
from collections.abc import Sequence

import dagster as dg

from pipelines.partitions import TaskFile

# Cron signs in a name: letters, digits and _ are all that Dagster takes.
_SPOKEN = str.maketrans({" ": "_", "*": "any", "/": "_per_", "-": "_to_", ",": "_and_", "#": "_nth_", "?": "_some_", "@": "_"})

# The whole chain, so that one run says why a prompt was or was not published.
retune = dg.define_asset_job(
    "retune",
    selection=dg.AssetSelection.all(),
    description="Read, split, tune, evaluate and, if the gate passes, publish the prompt of one task.",
)

# For prompts that were tuned or evaluated by hand. `eager` alone would publish a rejected prompt: a blocking check holds
# back the steps of its own run only, hence the second condition.
publish_what_passed = (dg.AutomationCondition.eager() & dg.AutomationCondition.all_deps_blocking_checks_passed()).with_label(
    "publish what passed the gate"
)


def retune_schedules(files: Sequence[TaskFile]) -> list[dg.ScheduleDefinition]:
    """A schedule for each distinct cron line among the task files; a tick launches one run for each of its tasks.

    A schedule rather than `AutomationCondition.on_cron`, which waits for new data after the tick: a task is retuned at its
    hour regardless, also to notice that a new library version changes the result.
    """
    keys: dict[str, list[str]] = defaultdict(list)
    for file in files:
        if file.schedule is not None:
            keys[" ".join(file.schedule.split())].append(file.key)
    return [_schedule(cron, tuple(tasks)) for cron, tasks in keys.items()]


def _schedule(cron: str, tasks: tuple[str, ...]) -> dg.ScheduleDefinition:
    @dg.schedule(
        name=f"retune_at_{cron.translate(_SPOKEN)}",
        cron_schedule=cron,
        job=retune,
        description=f'Retunes every task whose file says `schedule: "{cron}"`: {", ".join(tasks)}.',
    )
    def tick(context: dg.ScheduleEvaluationContext) -> list[dg.RunRequest]:
        return [dg.RunRequest(run_key=f"{key} {context.scheduled_execution_time.isoformat()}", partition_key=key) for key in tasks]

    return tick
