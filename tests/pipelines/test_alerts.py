"""Alerts: a failed gate and a failed run reach a webhook, once each and with the reason; a webhook that is down is told later."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from deployment import a_deployment, write_task
from webhook import PLANTED, Receiver, webhook

from pipelines.alerts import Webhook, alert_failed_gate, alert_failed_run
from pipelines.definitions import build_defs
from pipelines.settings import ALERT_URL, Settings


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with webhook() as server:
        yield server


def evaluated(instance: dg.DagsterInstance, task: str, passed: bool) -> None:
    """An evaluation as its asset records it."""
    metadata = {"verdict": f"{'passed' if passed else 'failed'} (accuracy)", "reasons": dg.MetadataValue.md("- gain is too small")}
    instance.report_runless_asset_event(dg.AssetMaterialization("evaluation", partition=task, metadata=metadata))


def tick(instance: dg.DagsterInstance, receiver: Receiver, cursor: str | None) -> str | None:
    with dg.build_sensor_context(instance=instance, cursor=cursor, resources={"webhook": Webhook(url=receiver.url)}) as context:
        alert_failed_gate(context)
        return context.cursor


def test_every_failed_gate_is_told_once_and_passed_ones_and_the_past_are_not(receiver: Receiver) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        evaluated(instance, "long_ago", passed=False)
        cursor = tick(instance, receiver, None)
        for task, passed in (("worse", False), ("better", True), ("much_worse", False)):
            evaluated(instance, task, passed)
        cursor = tick(instance, receiver, cursor)
        tick(instance, receiver, cursor)
    assert [(message["kind"], message["task"]) for message in receiver.told] == [("gate_failed", "worse"), ("gate_failed", "much_worse")]
    assert receiver.told[0]["text"] == "Gate of worse failed, production stays as it is:\n- gain is too small"


def test_the_first_tick_before_any_evaluation_misses_none(receiver: Receiver) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        cursor = tick(instance, receiver, None)
        evaluated(instance, "first", passed=False)
        tick(instance, receiver, cursor)
    assert [message["task"] for message in receiver.told] == ["first"]


def test_a_webhook_that_is_down_is_told_by_a_later_tick_and_its_address_is_not_in_the_failure(receiver: Receiver) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        cursor = tick(instance, receiver, None)
        evaluated(instance, "worse", passed=False)
        receiver.status = 503
        with pytest.raises(dg.Failure, match=r"^the alert webhook answered 503$"):
            tick(instance, receiver, cursor)
        receiver.status = 200
        tick(instance, receiver, cursor)
    assert [message["task"] for message in receiver.told] == ["worse", "worse"]


def told_of(job: dg.JobDefinition, receiver: Receiver) -> dg.ExecuteInProcessResult:
    """A run of a job that fails, and what its sensor makes of that."""
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.execute_in_process(instance=instance, raise_on_error=False, tags={"dagster/partition": "x"})
        event = next(event for event in result.all_events if event.event_type == dg.DagsterEventType.RUN_FAILURE)
        context = dg.build_run_status_sensor_context("alert_failed_run", event, instance, result.dagster_run).for_run_failure()
        alert_failed_run(context, webhook=Webhook(url=receiver.url))
    return result


def test_a_failed_run_is_told_with_the_innermost_reason(receiver: Receiver) -> None:
    @dg.op
    def broken() -> None:
        raise dg.Failure("tasks/x.yaml: data.target: column is not there")

    @dg.job
    def retune() -> None:
        broken()

    result = told_of(retune, receiver)
    (message,) = receiver.told
    assert message["text"] == f"Run {result.run_id[:8]} of x failed: broken: tasks/x.yaml: data.target: column is not there"
    assert message["run"] == result.run_id and message["task"] == "x"


def test_a_run_that_failed_at_its_gate_alone_is_not_told_as_a_failed_run_too(receiver: Receiver) -> None:
    @dg.asset
    def evaluation() -> None: ...

    @dg.asset_check(asset=evaluation, blocking=True)
    def gate() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=False)

    @dg.asset(deps=[evaluation])
    def published_prompt() -> None: ...

    job = dg.define_asset_job("retune", selection=dg.AssetSelection.all())
    defs = dg.Definitions([evaluation, published_prompt], asset_checks=[gate], jobs=[job], executor=dg.in_process_executor)
    assert not told_of(defs.resolve_job_def("retune"), receiver).success
    assert receiver.told == []


def test_without_an_address_no_alert_is_defined_and_with_one_it_stays_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = a_deployment(tmp_path)
    write_task(settings, "a_task")
    assert not [sensor.name for sensor in build_defs(settings).sensors if sensor.name.startswith("alert")]
    monkeypatch.setenv(ALERT_URL, f"https://hooks.example.com/{PLANTED}")
    assert Settings.from_environment(
        {ALERT_URL: f"https://hooks.example.com/{PLANTED}", "PROMPTMILL_TASKS": str(settings.tasks_dir)}
    ).alerts
    defs = build_defs(settings.model_copy(update={"alerts": True}))
    assert {"alert_failed_gate", "alert_failed_run"} <= {sensor.name for sensor in defs.sensors}
    snapshot = dg.serialize_value(defs.get_repository_def().get_all_jobs()[0].get_job_snapshot())
    assert ALERT_URL in snapshot or "webhook" not in snapshot
    assert PLANTED not in snapshot
