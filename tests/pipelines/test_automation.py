"""Schedules and conditions: who is run when, and that a rejected prompt is never published by itself."""

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData
from deployment import a_deployment, write_task

from pipelines.definitions import build_defs

EVALUATION = dg.AssetKey("evaluation")
MONDAY = datetime(2026, 3, 2, 3, 0, tzinfo=UTC)


def report_gate(instance: dg.DagsterInstance, task: str, passed: bool) -> None:
    """The gate's outcome for the latest evaluation of a task, as a run would record it."""
    (record,) = instance.fetch_materializations(dg.AssetRecordsFilter(EVALUATION, asset_partitions=[task]), limit=1).records
    target = AssetCheckEvaluationTargetMaterializationData(storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp)
    instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(EVALUATION, "gate", passed, target_materialization_data=target, blocking=True, partition=task)
    )


def test_each_cron_line_is_a_schedule_that_runs_the_tasks_which_have_it(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    write_task(settings, "a")
    write_task(settings, "b", schedule="0  3 * * 1")
    write_task(settings, "c", schedule="*/30 6-8 * * 1,4")
    write_task(settings, "never", schedule=None)
    defs = build_defs(settings)
    dg.Definitions.validate_loadable(defs)
    launched = {}
    for schedule in defs.schedules:
        with dg.build_schedule_context(scheduled_execution_time=MONDAY) as context:
            launched[schedule.name] = [(request.partition_key, request.run_key) for request in schedule(context)]
    assert launched == {
        "retune_at_0_3_any_any_1": [("a", "a 2026-03-02T03:00:00+00:00"), ("b", "b 2026-03-02T03:00:00+00:00")],
        "retune_at_any_per_30_6_to_8_any_any_1_and_4": [("c", "c 2026-03-02T03:00:00+00:00")],
    }


def test_a_prompt_that_passed_its_gate_is_published_by_itself_and_a_rejected_one_is_not(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    write_task(settings, "passed")
    write_task(settings, "rejected")
    defs = build_defs(settings)
    with dg.DagsterInstance.ephemeral() as instance:
        before = dg.evaluate_automation_conditions(defs, instance)
        for task in ("passed", "rejected"):
            for asset in ("examples", "splits", "tuned_prompt", "evaluation"):
                instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=task))
            report_gate(instance, task, passed=task == "passed")
        after = dg.evaluate_automation_conditions(defs, instance, cursor=before.cursor)
    assert after.get_requested_partitions(dg.AssetKey("published_prompt")) == {"passed"}
