"""The tuned prompt."""

from functools import partial
from pathlib import Path

import dagster as dg

from pipelines.batch import Inputs, attempt, hand_on
from pipelines.config import TuneConfig
from pipelines.failures import plain_failures
from pipelines.fleets import Tuner
from pipelines.io_managers import PromptFolders
from pipelines.partitions import TASKS
from pipelines.pipes import Processes
from pipelines.resources import Checkpoints, RunLog, Store, TaskFolder


@dg.asset(
    partitions_def=TASKS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    group_name="prompts",
    kinds={"pytorch", "huggingface"},
    owners=["team:promptmill"],
    code_version="3",
    io_manager_key="prompts",
    pool="gpu",  # one at a time for each accelerator: see deploy/dagster.yaml
)
@plain_failures
def tuned_prompt(
    context: dg.AssetExecutionContext,
    config: TuneConfig,
    tasks: TaskFolder,
    store: Store,
    progress: RunLog,
    checkpoints: Checkpoints,
    processes: Processes,
    prompts: dg.ResourceParam[PromptFolders],
    splits: Inputs,
):
    """The prompt of the frozen model, tuned on the train rows and chosen on the validation rows. The test rows are left alone.
    Where a prompt is live, it is tuned from that one too, side by side, and the better on validation goes on. The tasks of a
    backfill are one fleet. What was tuned from the same inputs before is taken again. Where the task file asks for a search, its
    settings are chosen first, on train and validation rows together; a text prompt is searched on these as a whole."""
    from prompt_core.tuning import Order  # torch loads here, not with the code location

    def order(key: str) -> Order:
        sides = splits[key]
        return Order(config.applied_to(tasks.load(key)), (sides.train, sides.validation), store.open().live(key))

    orders = {key: attempt(context, order, key) for key in context.partition_keys}
    with progress.follow(context) as shown:
        retune = partial(processes.retune, context, shown=shown, checkpoints=Path(checkpoints.folder))
        outcomes = Tuner(prompts, retune, context.log.info).tune_all(orders)
    return hand_on(context, outcomes, splits)
