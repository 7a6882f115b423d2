"""From a task's data file to clean examples, and from these to the three sides of a fair experiment."""

import dagster as dg

from pipelines.batch import Inputs, Made, each_task
from pipelines.failures import plain_failures
from pipelines.metadata import examples_metadata, splits_metadata
from pipelines.partitions import TASKS
from pipelines.resources import TaskFolder
from prompt_core.data import clean, prepare, read_examples, split
from prompt_core.data.digest import frame_digest


@dg.asset(
    partitions_def=TASKS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    group_name="data",
    kinds={"polars"},
    owners=["team:promptmill"],
    code_version="2",
    io_manager_key="frames",
)
@plain_failures
def examples(context: dg.AssetExecutionContext, tasks: TaskFolder):
    """The labelled examples of the task's data file, cleaned: one spelling per text, nothing empty, contradictory or there twice."""

    def make(key: str) -> Made:
        task = tasks.load(key)
        frame, report = clean(read_examples(task), task)
        return Made(frame, frame_digest(frame), examples_metadata(frame, report, task))

    return each_task(context, make)


@dg.asset(
    partitions_def=TASKS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    group_name="data",
    kinds={"polars"},
    owners=["team:promptmill"],
    code_version="1",
    io_manager_key="splits",
)
@plain_failures
def splits(context: dg.AssetExecutionContext, tasks: TaskFolder, examples: Inputs):
    """Train, validation and test rows, divided by content hash: a row never changes side when the data grows."""

    def make(key: str) -> Made:
        task, frame = tasks.load(key), examples[key]
        # A test file of its own takes its texts out of the examples, which `prepare` does from the files.
        divided = prepare(task)[0] if task.data.test_path else split(frame, task)
        return Made(divided, divided.digest, splits_metadata(divided, task))

    return each_task(context, make, examples)
