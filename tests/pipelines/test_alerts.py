"""Alerts: a failed gate and a failed run reach a webhook, once each and with the reason; what it does not take it is told later."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.remote_origin import InProcessCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from deployment import a_deployment, write_task
from webhook import PLANTED, Receiver, webhook

from pipelines.alerts import Webhook, alert_failures
from pipelines.definitions import build_defs
from pipelines.settings import ALERT_URL, Settings


@dataclass
class Site:
    """An instance, its webhook, and the sensor's cursor from tick to tick."""

    instance: dg.DagsterInstance
    receiver: Receiver
    cursor: str | None = None
    location: str | None = None

    def tick(self) -> str:
        """The reason that the tick shows."""
        context = dg.SensorEvaluationContext(
            None,
            cursor=self.cursor,
            instance=self.instance,
            resources={"webhook": dg.ResourceDefinition.hardcoded_resource(Webhook(url=self.receiver.url))},
            code_location_origin=origin(self.location) if self.location else None,
        )
        with context:
            shown = alert_failures(context)
            self.cursor = context.cursor
        assert isinstance(shown, dg.SkipReason) and shown.skip_message
        return shown.skip_message

    def evaluated(self, *tasks: str, passed: bool = False) -> None:
        """Evaluations as their asset records them."""
        verdict = "passed" if passed else "failed"
        metadata = {"verdict": f"{verdict} (accuracy)", "reasons": dg.MetadataValue.md("- gain is too small")}
        for task in tasks:
            self.instance.report_runless_asset_event(dg.AssetMaterialization("evaluation", partition=task, metadata=metadata))

    def failed(self, job: dg.JobDefinition) -> str:
        """A run that fails; gives its id."""
        result = job.execute_in_process(instance=self.instance, raise_on_error=False, tags={"dagster/partition": "x"})
        assert not result.success
        return str(result.run_id)

    @property
    def tasks(self) -> list[str]:
        """Whom the webhook was told of, in order."""
        return [message["task"] for message in self.receiver.told]


@pytest.fixture
def site() -> Iterator[Site]:
    """One that has begun to look."""
    with dg.DagsterInstance.ephemeral() as instance, webhook() as receiver:
        site = Site(instance, receiver)
        site.tick()
        yield site


def origin(location: str) -> InProcessCodeLocationOrigin:
    return InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name="somewhere"), location_name=location)


def broken(message: str) -> dg.JobDefinition:
    """A job that fails with a message."""

    @dg.op(name="broken")
    def step() -> None:
        raise dg.Failure(message)

    @dg.job(name="retune")
    def job() -> None:
        step()

    return job


def judged(name: str, passed: bool, description: str) -> dg.AssetChecksDefinition:
    @dg.asset_check(name=name, asset="evaluation", blocking=True)
    def check() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=passed, description=description)

    return check


def checked(*checks: dg.AssetChecksDefinition) -> dg.JobDefinition:
    """A job with blocking checks between two assets."""

    @dg.asset
    def evaluation() -> None: ...

    @dg.asset(deps=[evaluation])
    def published_prompt() -> None: ...

    job = dg.define_asset_job("retune", selection=dg.AssetSelection.all())
    defs = dg.Definitions([evaluation, published_prompt], asset_checks=[*checks], jobs=[job], executor=dg.in_process_executor)
    return defs.resolve_job_def("retune")


def test_a_run_in_which_hundreds_failed_is_told_in_a_text_that_chats_take(site: Site) -> None:
    site.failed(broken("\n".join(f"task_{number}: there is no file" for number in range(2000))))
    assert site.tick() == "messages told: 1"
    (message,) = site.receiver.told
    assert "task_0: there is no file\ntask_1:" in message["text"] and message["text"].endswith("… (the rest is in Dagster's UI)")
    assert len(message["text"]) < 4_100


def test_every_failed_gate_is_told_once_and_passed_ones_and_the_past_are_not(site: Site) -> None:
    site.evaluated("worse")
    site.evaluated("better", passed=True)
    site.evaluated("much_worse")
    assert site.tick() == "messages told: 2"
    assert site.tick() == "messages told: 0"
    assert [(message["kind"], message["task"]) for message in site.receiver.told] == [
        ("gate_failed", "worse"),
        ("gate_failed", "much_worse"),
    ]
    assert site.receiver.told[0]["text"] == "Gate of worse failed, production stays as it is:\n- gain is too small"


def test_what_was_before_the_first_tick_is_not_told(site: Site) -> None:
    site.evaluated("long_ago")
    site.failed(broken("long ago"))
    later = Site(site.instance, site.receiver)
    assert later.tick() == "begins with what happens from now on"
    site.evaluated("now")
    later.tick()
    assert site.tasks == ["now"]


def test_a_failed_run_is_told_once_with_the_innermost_reason(site: Site) -> None:
    run = site.failed(broken("tasks/x.yaml: data.target: column is not there"))
    site.tick()
    site.tick()
    assert site.receiver.told == [
        {
            "text": f"Run {run[:8]} of x failed: broken: tasks/x.yaml: data.target: column is not there",
            "kind": "run_failed",
            "task": "x",
            "run": run,
            "job": "retune",
        }
    ]


def test_a_run_that_failed_at_its_gate_alone_is_not_told_as_a_failed_run_too(site: Site) -> None:
    site.failed(checked(judged("gate", False, "gain is too small")))
    assert site.tick() == "messages told: 0"


def test_a_run_that_failed_at_another_check_is_told_with_its_name_and_what_it_found(site: Site) -> None:
    found = "no tensor and 3 losses hold numbers that are not finite."
    run = site.failed(checked(judged("schema", True, "Expected: text."), judged("finite_prompt", False, found), judged("gate", False, "")))
    site.tick()
    (message,) = site.receiver.told
    assert message["text"] == f"Run {run[:8]} of x failed: check finite_prompt of evaluation: {found}"
    assert message["kind"] == "run_failed" and message["task"] == "x"


def test_a_webhook_that_is_down_is_told_by_a_later_tick_and_its_address_is_not_in_the_reason(site: Site) -> None:
    site.evaluated("worse")
    run = site.failed(broken("disk is gone"))
    site.receiver.answer = lambda message: 503
    for _ in range(20):
        assert site.tick() == "messages told: 0; the alert webhook answered 503, the rest is told when it takes it"
    site.receiver.answer = lambda message: 200
    assert site.tick() == "messages told: 2"
    assert [message["run"] for message in site.receiver.told][1:] == [run] and site.tasks == ["worse", "x"]


def test_a_webhook_that_cannot_be_reached_is_said_without_its_address(site: Site) -> None:
    site.evaluated("worse")
    site.receiver.shutdown()
    site.receiver.server_close()
    assert "the alert webhook cannot be reached (ConnectionError)" in site.tick()


def test_a_webhook_that_takes_a_few_at_a_time_is_told_everything_once_and_in_order(site: Site) -> None:
    asked: list[Any] = []

    def three_per_tick(message: dict[str, Any]) -> int:
        asked.append(message)
        return 200 if len(asked) <= 3 else 429

    site.receiver.answer = three_per_tick
    tasks = [f"task{number}" for number in range(8)]
    site.evaluated(*tasks)
    shown = []
    for _ in range(3):
        asked.clear()
        shown.append(site.tick())
    assert site.tasks == tasks
    assert shown[0] == "messages told: 3; the alert webhook answered 429, the rest is told when it takes it"
    assert shown[2] == "messages told: 2"


@pytest.mark.parametrize(("answer", "ticks"), [(413, 10), (500, 24 * 60 * 2)], ids=["ten_times", "a_day"])
def test_a_message_that_is_never_taken_is_left_out_with_a_line_and_those_behind_it_are_told(
    site: Site, answer: int, ticks: int, capsys: pytest.CaptureFixture[str]
) -> None:
    site.receiver.answer = lambda message: answer if message["task"] == "endless" else 200
    site.evaluated("before", "endless", "behind")
    assert site.tick().startswith(f"messages told: 1; the alert webhook answered {answer}")
    assert site.cursor
    kept = json.loads(site.cursor)
    assert kept["refusals"] == {"gate_failed": 1}
    site.cursor = json.dumps(kept | {"refusals": {"gate_failed": ticks - 2}})
    site.tick()
    assert site.tasks == ["before"]
    assert site.tick() == "messages told: 1"
    assert site.tasks == ["before", "behind"]
    assert f"Left out, since the alert webhook answered {answer} {ticks} times: Gate of endless failed" in capsys.readouterr().err


def test_a_tick_ends_before_dagster_ends_it_and_the_next_one_goes_on(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(message: dict[str, Any]) -> int:
        time.sleep(0.1)
        return 200

    monkeypatch.setattr("pipelines.alerts._TICK_SECONDS", 0.15)
    site.receiver.answer = slowly
    site.evaluated("a", "b", "c")
    assert site.tick().endswith(", the next tick goes on")
    for _ in range(3):
        site.tick()
    assert site.tasks == ["a", "b", "c"]


@pytest.mark.parametrize(("location", "told"), [("promptmill", 1), ("consumer", 0)])
def test_runs_of_other_code_locations_are_theirs_to_tell(site: Site, location: str, told: int) -> None:
    site.location = "promptmill"
    run = site.instance.create_run_for_job(
        broken("disk is gone"),
        remote_job_origin=RemoteJobOrigin(RemoteRepositoryOrigin(origin(location), "__repository__"), "retune"),
    )
    site.instance.report_run_failed(run, "the machine is gone")
    assert site.tick() == f"messages told: {told}"
    assert [message["text"] for message in site.receiver.told] == [f"Run {run.run_id[:8]} of retune failed: the machine is gone"] * told


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
    assert [sensor.name for sensor in defs.sensors if sensor.name.startswith("alert")] == ["alert_failures"]
    snapshot = dg.serialize_value(defs.get_repository_def().get_all_jobs()[0].get_job_snapshot())
    assert ALERT_URL in snapshot or "webhook" not in snapshot
    assert PLANTED not in snapshot
