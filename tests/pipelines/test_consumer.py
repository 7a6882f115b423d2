"""The consumer's automation: a newly published prompt is used at once, by the asset that asks for it and by no other."""

import importlib.util
from types import ModuleType

import dagster as dg
import pytest

from pipelines.partitions import TASKS
from pipelines.settings import REPOSITORY


def consumer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("the_consumer", REPOSITORY / "examples" / "consumer" / "definitions.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("tasks", [["support_intent", "support_reply"], ["support_intent"]], ids=["both tasks", "a task is missing"])
def test_an_asset_runs_when_its_own_prompt_is_published(tasks: list[str]) -> None:
    theirs = consumer()
    published = dg.AssetSpec("published_prompt", partitions_def=TASKS)
    defs = dg.Definitions(assets=[published, theirs.routed_messages, theirs.drafted_replies], resources=theirs.defs.resources)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(str(TASKS.name), tasks)
        before = dg.evaluate_automation_conditions(defs, instance)
        instance.report_runless_asset_event(dg.AssetMaterialization("published_prompt", partition="support_intent"))
        after = dg.evaluate_automation_conditions(defs, instance, cursor=before.cursor)
    assert before.total_requested == 0
    assert after.get_num_requested(dg.AssetKey("routed_messages")) == 1
    assert after.get_num_requested(dg.AssetKey("drafted_replies")) == 0


def test_the_sensor_that_looks_for_it_is_on() -> None:
    (sensor,) = consumer().defs.sensors
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
