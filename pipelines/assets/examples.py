"""From a task's data file to clean examples, and from these to the three sides of a fair experiment."""

import dagster as dg
import polars as pl

from pipelines.failures import plain_failures
from pipelines.metadata import examples_metadata, splits_metadata
from pipelines.resources import TaskFolder
from prompt_core.data import clean, prepare, read_examples, split
from prompt_core.data.digest import frame_digest


@dg.asset(group_name="data", kinds={"polars"}, owners=["team:promptmill"], code_version="1", io_manager_key="frames")
@plain_failures
def examples(context: dg.AssetExecutionContext, tasks: TaskFolder):
    """The labelled examples of the task's data file, cleaned: one spelling per text, nothing empty, contradictory or there twice."""
    task = tasks.load(context.partition_key)
    frame, report = clean(read_examples(task), task)
    return dg.MaterializeResult(
        value=frame, data_version=dg.DataVersion(frame_digest(frame)), metadata=examples_metadata(frame, report, task)
    )


@dg.asset(group_name="data", kinds={"polars"}, owners=["team:promptmill"], code_version="1", io_manager_key="splits")
@plain_failures
def splits(context: dg.AssetExecutionContext, tasks: TaskFolder, examples: pl.DataFrame):
    """Train, validation and test rows, divided by content hash: a row never changes side when the data grows."""
    task = tasks.load(context.partition_key)
    # A test file of its own takes its texts out of the examples, which `prepare` does from the files.
    divided = prepare(task)[0] if task.data.test_path else split(examples, task)
    return dg.MaterializeResult(value=divided, data_version=dg.DataVersion(divided.digest), metadata=splits_metadata(divided, task))
