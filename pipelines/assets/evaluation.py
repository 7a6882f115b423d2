"""The one asset that opens the test rows."""

import dagster as dg

from pipelines.failures import plain_failures
from pipelines.io_managers import evaluation_digest
from pipelines.metadata import evaluation_metadata
from pipelines.resources import RunLog, Store, TaskFolder
from prompt_core.data import Splits


@dg.asset(
    group_name="prompts",
    kinds={"pytorch", "scipy"},
    owners=["team:promptmill"],
    code_version="1",
    io_manager_key="evaluations",
    pool="gpu",
)
@plain_failures
def evaluation(
    context: dg.AssetExecutionContext,
    tasks: TaskFolder,
    store: Store,
    progress: RunLog,
    splits: Splits,
    tuned_prompt,  # TunedPrompt, whose import would load torch with the code location
):
    """The tuned prompt beside every baseline and what runs in production, on the same test rows, with the verdict of the gate."""
    from prompt_core import evaluate

    task = tasks.load(context.partition_key)
    with progress.follow(context) as shown:
        measured = evaluate(task, tuned_prompt, splits, production=store.open().live(task.name), on_progress=shown.contender)
    return dg.MaterializeResult(
        value=measured,
        data_version=dg.DataVersion(evaluation_digest(measured)),
        metadata=evaluation_metadata(measured, task, splits, tuned_prompt),
    )
