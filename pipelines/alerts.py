"""Alerts: a failed gate and a failed run are told to the webhook that PROMPTMILL_ALERT_URL names; without one nothing here is defined."""

import json
from typing import Any

import dagster as dg
import requests

from pipelines.history import Cursor, metadata_of
from pipelines.settings import ALERT_URL

_EVALUATION = dg.AssetKey("evaluation")
_SECONDS = 10  # a webhook that is slower is asked again by the sensor's next tick


class Webhook(dg.ConfigurableResource):
    """Takes messages as JSON, `text` for people (as Slack, Teams and Mattermost read it), the rest for programs."""

    url: str

    def tell(self, text: str, **details: Any) -> None:
        """Post one message.

        Raises:
            dg.Failure: the webhook did not take it. The address, which is a secret, is not in the message.
        """
        try:
            requests.post(self.url, json={"text": text, **details}, timeout=_SECONDS).raise_for_status()
        except requests.HTTPError as error:
            raise dg.Failure(f"the alert webhook answered {error.response.status_code}") from None
        except requests.RequestException as error:
            raise dg.Failure(f"the alert webhook cannot be reached ({type(error).__name__})") from None


@dg.sensor(minimum_interval_seconds=30, default_status=dg.DefaultSensorStatus.RUNNING)
def alert_failed_gate(context: dg.SensorEvaluationContext, webhook: Webhook) -> dg.SkipReason:
    """One message for every evaluation whose gate did not pass: production stays as it is, somebody should know why.

    The event log is read rather than a hook put on the check: it also has what a killed run left behind, and a webhook that is
    down is told later. The first tick only notes where the log ends.
    """
    if context.cursor is None:
        context.update_cursor(json.dumps({_EVALUATION.to_user_string(): _end(context.instance)}))
        return dg.SkipReason("begins with what happens from now on")
    cursor, told = Cursor(json.loads(context.cursor)), 0
    for record in cursor.new(context.instance.fetch_materializations, _EVALUATION):
        found = metadata_of(record)
        if not str(found.get("verdict", "")).startswith("failed"):
            continue
        webhook.tell(
            f"Gate of {record.partition_key} failed, production stays as it is:\n{found.get('reasons', '')}",
            kind="gate_failed",
            task=record.partition_key,
            run=record.run_id,
            digest=found.get("prompt digest"),
        )
        told += 1
    context.update_cursor(json.dumps(cursor.positions))
    return dg.SkipReason(f"{told} failed gates told")


@dg.run_failure_sensor(minimum_interval_seconds=30, default_status=dg.DefaultSensorStatus.RUNNING)
def alert_failed_run(context: dg.RunFailureSensorContext, webhook: Webhook) -> None:
    """One message for every run that failed for another reason than its gate, which has an alert of its own."""
    failed = context.get_step_failure_events()
    if failed and all("DagsterAssetCheckFailedError" in str(event.step_failure_data.error) for event in failed):
        return
    reasons = [_innermost(event) for event in failed] or [context.failure_event.message or "the run's process was lost"]
    task = context.dagster_run.tags.get("dagster/partition")
    webhook.tell(
        f"Run {context.dagster_run.run_id[:8]} of {task or context.dagster_run.job_name} failed: {'; '.join(reasons)}",
        kind="run_failed",
        task=task,
        run=context.dagster_run.run_id,
        job=context.dagster_run.job_name,
    )


ALERTS = (alert_failed_gate, alert_failed_run)


def webhook() -> Webhook:
    """The webhook, whose address is looked up when it is used: it is in no definition, log or launchpad."""
    return Webhook(url=dg.EnvVar(ALERT_URL))


def _end(instance: dg.DagsterInstance) -> str | None:
    return instance.fetch_materializations(_EVALUATION, limit=1).cursor


def _innermost(event: dg.DagsterEvent) -> str:
    error = event.step_failure_data.error
    while error.cause:
        error = error.cause
    return f"{event.step_key}: {error.message.strip().removeprefix('dagster._core.definitions.events.Failure: ')}"
