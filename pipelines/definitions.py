"""The code location that Dagster loads: `build_defs` puts the parts together, `defs` is this deployment's."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from pipelines.alerts import alert_failures, webhook
from pipelines.assets.evaluation import baselines, evaluation
from pipelines.assets.examples import examples, splits
from pipelines.assets.exports import published_prompt, report
from pipelines.assets.prompts import tuned_prompt
from pipelines.automation import retune, retune_schedules
from pipelines.checks import build_checks
from pipelines.io_managers import ContenderFiles, EvaluationFiles, FrameFiles, PromptFolders, SplitsFolders, Texts
from pipelines.ledger import Ledger
from pipelines.pipes import Processes
from pipelines.prune import prune_job
from pipelines.resources import Checkpoints, RunLog, Store, TaskFolder
from pipelines.sensors import build_sensors
from pipelines.settings import Settings


def build_defs(settings: Settings, resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Everything that Dagster runs for the task files of a deployment.

    Args:
        settings: where things are.
        resource_overrides: resources by name in place of the usual ones.
    """
    root = str(settings.storage_dir)
    resources = {
        "tasks": TaskFolder(folder=str(settings.tasks_dir)),
        "store": Store(url=settings.store_url),
        "progress": RunLog(),
        "checkpoints": Checkpoints(folder=str(settings.storage_dir / "checkpoints")),
        "processes": Processes(torchrun=settings.torchrun, scratch=str(settings.storage_dir / "scratch")),
        "ledger": Ledger(root=root),
        "frames": FrameFiles(root=root),
        "splits": SplitsFolders(root=root),
        "prompts": PromptFolders(root=root),
        "contenders": ContenderFiles(root=root),
        "evaluations": EvaluationFiles(root=root),
        "texts": Texts(root=root),
        "pages": Texts(root=root, suffix=".html"),
    }
    status = dg.DefaultSensorStatus.RUNNING if settings.automation else dg.DefaultSensorStatus.STOPPED
    return dg.Definitions(
        assets=[examples, splits, baselines, tuned_prompt, evaluation, published_prompt, report],
        asset_checks=build_checks(),
        jobs=[retune, prune_job(settings.storage_dir, settings.tasks_dir)],
        schedules=retune_schedules(settings.tasks_dir, settings.timezone, settings.automation),
        sensors=[
            *build_sensors(settings.tasks_dir, settings.store_url, settings.automation),
            dg.AutomationConditionSensorDefinition("publish_what_passed", target=dg.AssetSelection.all(), default_status=status),
            *([alert_failures] if settings.alerts else []),
        ],
        resources={**resources, **({"webhook": webhook()} if settings.alerts else {}), **(resource_overrides or {})},
        # The steps of a task follow one another: a process for each would only load the frozen model again.
        executor=dg.in_process_executor,
    )


defs = build_defs(Settings.from_environment())
