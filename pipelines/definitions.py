"""The code location that Dagster loads: `build_defs` puts the parts together, `defs` is this deployment's."""

import warnings
from collections.abc import Mapping
from typing import Any

import dagster as dg

from pipelines.alerts import ALERTS, webhook
from pipelines.assets.evaluation import evaluation
from pipelines.assets.examples import examples, splits
from pipelines.assets.exports import published_prompt
from pipelines.assets.prompts import tuned_prompt
from pipelines.automation import retune, retune_schedules
from pipelines.checks import build_checks
from pipelines.io_managers import EvaluationFiles, FrameFiles, PromptFolders, SplitsFolders
from pipelines.partitions import find_task_files, task_partitions
from pipelines.resources import Checkpoints, RunLog, Store, TaskFolder
from pipelines.settings import Settings

# Partitioned asset checks, which the gate needs, are marked as a preview, and parts that Dagster itself uses inside as beta.
for category in (dg.PreviewWarning, dg.BetaWarning):
    warnings.filterwarnings("ignore", category=category)


def build_defs(settings: Settings, resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Everything that Dagster runs for the task files of a deployment.

    Args:
        settings: where things are.
        resource_overrides: resources by name in place of the usual ones.
    """
    files = find_task_files(settings.tasks_dir)
    tasks = task_partitions(files)
    root = str(settings.storage_dir)
    resources = {
        "tasks": TaskFolder(folder=str(settings.tasks_dir)),
        "store": Store(url=settings.store_url),
        "progress": RunLog(),
        "checkpoints": Checkpoints(folder=str(settings.storage_dir / "checkpoints")),
        "frames": FrameFiles(root=root),
        "splits": SplitsFolders(root=root),
        "prompts": PromptFolders(root=root),
        "evaluations": EvaluationFiles(root=root),
    }
    return dg.Definitions(
        assets=[_per_task(asset, tasks) for asset in (examples, splits, tuned_prompt, evaluation, published_prompt)],
        asset_checks=build_checks(tasks),
        jobs=[retune],
        schedules=retune_schedules(files),
        sensors=[
            dg.AutomationConditionSensorDefinition("publish_what_passed", target=dg.AssetSelection.all()),
            *(ALERTS if settings.alerts else ()),
        ],
        resources={**resources, **({"webhook": webhook()} if settings.alerts else {}), **(resource_overrides or {})},
        # The steps of a task follow one another: a process for each would only load the frozen model again.
        executor=dg.in_process_executor,
    )


def _per_task(asset: dg.AssetsDefinition, tasks: dg.PartitionsDefinition) -> dg.AssetsDefinition:
    return asset.map_asset_specs(lambda spec: spec.replace_attributes(partitions_def=tasks))


defs = build_defs(Settings.from_environment())
