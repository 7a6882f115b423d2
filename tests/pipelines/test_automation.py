"""Schedules and conditions: who is run when, and that a rejected prompt is never published by itself."""

from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData
from dagster._utils.schedules import schedule_execution_time_iterator
from deployment import a_deployment, failure_of, run_retune, run_steps, write_task

from pipelines.automation import runs_for
from pipelines.definitions import build_defs
from pipelines.partitions import find_task_files, register
from pipelines.settings import Settings
from prompt_core import PromptmillError

MONDAY = datetime(2026, 3, 2, 3, 0, tzinfo=UTC)


def report_check(instance: dg.DagsterInstance, asset: str, check: str, task: str, passed: bool) -> None:
    """The outcome of a blocking check for the latest value of a task, as a run would record it."""
    key = dg.AssetKey(asset)
    (record,) = instance.fetch_materializations(dg.AssetRecordsFilter(key, asset_partitions=[task]), limit=1).records
    target = AssetCheckEvaluationTargetMaterializationData(storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp)
    instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(key, check, passed, target_materialization_data=target, blocking=True, partition=task)
    )


def bounds(request: dg.RunRequest) -> str:
    """The tasks of a run request: one, or from one to another."""
    return request.partition_key or " to ".join(request.tags[f"dagster/asset_partition_range_{end}"] for end in ("start", "end"))


def ticks(defs: dg.Definitions, home: Path) -> dict[str, list[tuple[str, str | None]]]:
    """What each schedule launches on a monday at three."""
    launched = {}
    for schedule in defs.schedules:
        with (
            dg.DagsterInstance.local_temp(str(home)) as instance,
            dg.build_schedule_context(instance, scheduled_execution_time=MONDAY) as context,
        ):
            launched[schedule.name] = [(bounds(request), request.run_key) for request in schedule(context)]
    return launched


def test_each_cron_line_is_a_schedule_that_runs_the_tasks_which_have_it(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    write_task(settings, "a")
    write_task(settings, "b", schedule="0  3 * * 1")
    write_task(settings, "c", schedule="*/30 6-8 * * 1,4")
    write_task(settings, "never", schedule=None)
    defs = build_defs(settings)
    dg.Definitions.validate_loadable(defs)
    assert ticks(defs, tmp_path) == {
        "retune_at_0_3_any_any_1": [("a to b", "a 2026-03-02T03:00:00+00:00")],
        "retune_at_any_per_30_6_to_8_any_any_1_and_4": [("c", "c 2026-03-02T03:00:00+00:00")],
    }


def test_cron_lines_tell_the_hour_in_the_deployments_time_zone(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    write_task(settings, "a")
    environment = {"PROMPTMILL_TASKS": str(settings.tasks_dir), "DAGSTER_HOME": str(tmp_path)}
    days = ["03-09", "03-16", "03-23", "03-30", "04-06"]
    berlin = ["+01:00", "+01:00", "+01:00", "+02:00", "+02:00"]  # summer time begins on 29 March
    for said, offsets in (({}, ["+00:00"] * 5), ({"PROMPTMILL_TIMEZONE": "Europe/Berlin"}, berlin)):
        (schedule,) = build_defs(Settings.from_environment(environment | said)).schedules
        following = schedule_execution_time_iterator(MONDAY.timestamp() + 1, schedule.cron_schedule, schedule.execution_timezone)
        ticks = [next(following).isoformat() for _ in days]
        assert ticks == [f"2026-{day}T03:00:00{offset}" for day, offset in zip(days, offsets, strict=True)]


def test_a_tick_also_runs_a_task_whose_file_came_after_the_code_location_was_loaded(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    write_task(settings, "a")
    defs = build_defs(settings)
    write_task(settings, "later")
    assert ticks(defs, tmp_path) == {"retune_at_0_3_any_any_1": [("a to later", "a 2026-03-02T03:00:00+00:00")]}


def test_a_task_whose_file_was_broken_since_runs_at_its_hour_and_says_why(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    for key in "abc":
        write_task(settings, key)
    defs = build_defs(settings)
    write_task(settings, "a", schedule="0 3 * *")
    write_task(settings, "b", schedule=None).write_text((settings.tasks_dir / "b.yaml").read_text().replace("schedule: null\n", ""))
    (settings.tasks_dir / "c.yaml").write_bytes(b"\xff\xfe")
    assert [bound for bound, _ in ticks(defs, tmp_path)["retune_at_0_3_any_any_1"]] == ["a", "c"]
    with dg.DagsterInstance.ephemeral() as instance:
        assert 'schedule: "0 3 * *" is not a cron line' in failure_of(run_retune(settings, instance, "a"))


def test_a_tick_over_a_folder_that_is_not_mounted_fails(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    path = write_task(settings, "a")
    defs = build_defs(settings)
    path.unlink()
    with pytest.raises(PromptmillError, match=r"tasks: holds no task file, though there were some. Is it mounted\?"):
        ticks(defs, tmp_path)


def test_tasks_that_do_not_stand_side_by_side_are_runs_of_their_own() -> None:
    requests = runs_for(["a", "b", "d"], ["a", "b", "c", "d"], "now")
    assert [(bounds(request), request.run_key) for request in requests] == [("a to b", "a now"), ("d", "d now")]


def test_production_settings_switch_schedules_and_sensors_on(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    write_task(settings, "a")
    for on in (True, False):
        defs = build_defs(settings.model_copy(update={"automation": on}))
        status = {each.name: each.default_status.value for each in (*defs.schedules, *defs.sensors)}
        assert set(status) == {"retune_at_0_3_any_any_1", "task_files", "new_data", "drifted_inputs", "publish_what_passed"}
        assert status.pop("task_files") == "RUNNING"  # which launches nothing
        assert set(status.values()) == {"RUNNING" if on else "STOPPED"}


def test_a_prompt_that_passed_its_gate_is_published_by_itself_and_a_rejected_one_is_not(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    write_task(settings, "passed")
    write_task(settings, "rejected")
    defs = build_defs(settings)
    with dg.DagsterInstance.ephemeral() as instance:
        register(instance, find_task_files(settings.tasks_dir))
        before = dg.evaluate_automation_conditions(defs, instance)
        for task in ("passed", "rejected"):
            for asset in ("examples", "splits", "baselines", "tuned_prompt", "evaluation"):
                instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=task))
            for check in ("finite_prompt", "round_trip"):
                report_check(instance, "tuned_prompt", check, task, passed=True)
            report_check(instance, "evaluation", "gate", task, passed=task == "passed")
        after = dg.evaluate_automation_conditions(defs, instance, cursor=before.cursor)
    assert after.get_requested_partitions(dg.AssetKey("published_prompt")) == {"passed"}


def test_a_prompt_that_is_tuned_by_hand_waits_for_its_own_evaluation(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    write_task(settings, "a")
    defs, key = build_defs(settings), dg.AssetKey("published_prompt")
    with dg.DagsterInstance.ephemeral() as instance:
        assert run_retune(settings, instance, "a").success
        cursor = dg.evaluate_automation_conditions(defs, instance).cursor
        assert run_steps(settings, instance, "a", ["tuned_prompt"], tune={"seed": 1}).success
        tuned = dg.evaluate_automation_conditions(defs, instance, cursor=cursor)
        assert tuned.total_requested == 0
        refused = run_steps(settings, instance, "a", ["report"])
        assert "evaluation is of prompt" in failure_of(refused) and failure_of(refused).endswith("Materialize evaluation again.")
        assert run_steps(settings, instance, "a", ["evaluation"]).success
        evaluated = dg.evaluate_automation_conditions(defs, instance, cursor=tuned.cursor)
    assert evaluated.get_requested_partitions(key) == evaluated.get_requested_partitions(dg.AssetKey("report")) == {"a"}


def test_a_rejected_prompt_is_reported_whichever_way_its_run_was_launched(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    write_task(settings, "a")
    defs, report = build_defs(settings), dg.AssetKey("report")
    chain = ["examples", "splits", "baselines", "tuned_prompt", "evaluation", "published_prompt", "report"]
    with dg.DagsterInstance.ephemeral() as instance:
        assert run_retune(settings, instance, "a").success
        cursor = dg.evaluate_automation_conditions(defs, instance).cursor
        write_task(settings, "a", gate={"min_gain": 101})
        for launch in (lambda: run_retune(settings, instance, "a"), lambda: run_steps(settings, instance, "a", chain)):  # job; assets
            assert not launch().success
            found = dg.evaluate_automation_conditions(defs, instance, cursor=cursor)
            assert found.get_requested_partitions(report) == {"a"} and found.total_requested == 1
            once = dg.evaluate_automation_conditions(defs, instance, cursor=found.cursor)
            assert once.total_requested == 0
            cursor = once.cursor
