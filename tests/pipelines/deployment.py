"""Builders for the tests of the pipeline: a deployment in a folder, with a real but tiny task that tunes in seconds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import yaml

from pipelines.automation import runs_for
from pipelines.definitions import build_defs
from pipelines.partitions import find_task_files, register
from pipelines.settings import Settings

# fmt: off
THINGS = [
    "kettle", "lamp", "scarf", "violin", "drill", "pram", "mirror", "tent", "ladder", "candle",
    "globe", "saddle", "anvil", "basket", "curtain", "teapot", "rug", "harp", "helmet", "sledge",
    "bench", "clock", "duvet", "easel", "fiddle", "goblet", "hammock", "jug", "kayak", "locket",
]
# fmt: on


def a_deployment(folder: Path) -> Settings:
    """Settings of a new deployment without task files."""
    (folder / "tasks").mkdir(parents=True)
    return Settings(tasks_dir=folder / "tasks", store_url=str(folder / "store"), storage_dir=folder / "assets")


def write_task(settings: Settings, name: str, **changes: Any) -> Path:
    """A task file over 60 messages: is something late or broken? Its label descriptions mislead, so that tuning has to help."""
    data = settings.tasks_dir / "messages.csv"
    rows = [(f"where is my {thing}", "late") for thing in THINGS] + [(f"the {thing} came broken", "damaged") for thing in THINGS]
    pl.DataFrame(rows, schema=["text", "label"], orient="row").write_csv(data)
    task = {
        "name": name,
        "backbone": "minilm",
        "data": {"path": data.name, "target": "label"},
        "objective": "classify",
        "template": "{{ text }}",
        "labels": {"late": "it came broken", "damaged": "where is it"},
        "prompt": {"kind": "deep", "tokens": 2},
        "tune": {"steps": 8, "batch_examples": 8, "learning_rate": 0.05, "validate_every": 4},
        "schedule": "0 3 * * 1",
    }
    path = settings.tasks_dir / f"{name}.yaml"
    path.write_text(yaml.safe_dump(task | changes), encoding="utf-8")
    return path


def run_retune(settings: Settings, instance: dg.DagsterInstance, key: str, **knobs: Any) -> dg.ExecuteInProcessResult:
    """The whole chain for one task, in this process. `knobs` are sections of the run config, such as `tune={"steps": 4}`."""
    return _run(settings, instance, key, None, knobs)


def run_steps(settings: Settings, instance: dg.DagsterInstance, key: str, assets: Sequence[str], **knobs: Any) -> dg.ExecuteInProcessResult:
    """Some assets of the chain for one task, as a person picks them in the UI."""
    return _run(settings, instance, key, [dg.AssetKey(asset) for asset in assets], knobs)


def _run(
    settings: Settings, instance: dg.DagsterInstance, key: str, assets: Sequence[dg.AssetKey] | None, knobs: dict[str, Any]
) -> dg.ExecuteInProcessResult:
    register(instance, find_task_files(settings.tasks_dir))
    config: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    if knobs:
        config["ops"] = {"tuned_prompt": {"config": knobs}}
    job = build_defs(settings).resolve_job_def("retune")
    return job.execute_in_process(instance=instance, partition_key=key, run_config=config, raise_on_error=False, asset_selection=assets)


def run_fleet(settings: Settings, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    """The whole chain for all tasks in one run, as a backfill launches it."""
    keys = register(instance, find_task_files(settings.tasks_dir))
    (request,) = runs_for(keys, keys, "test")
    config = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    job = build_defs(settings).resolve_job_def("retune")
    return job.execute_in_process(instance=instance, tags=request.tags, run_config=config, raise_on_error=False)


def failure_of(result: dg.ExecuteInProcessResult) -> str:
    """The description of the run's first failed step."""
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failures and failures[0].user_failure_data, failures
    return str(failures[0].user_failure_data.description)
