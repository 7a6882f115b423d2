"""Alerts: a failed gate and a failed run are told to the webhook that PROMPTMILL_ALERT_URL names; without one nothing here is defined."""

import json
import time
from collections import Counter
from collections.abc import Iterator

import dagster as dg
import requests

from pipelines.history import Cursor
from pipelines.messages import Message, of_evaluation, of_failed_run
from pipelines.settings import ALERT_URL

_EVALUATION = dg.AssetKey("evaluation")
_INTERVAL = 30  # seconds between ticks
_SECONDS = 10  # a webhook that is slower is asked again by the sensor's next tick
_TICK_SECONDS = 20  # then the rest waits for the next tick: one that lasts a minute is ended, and what it told would be told again
_OF_THE_MESSAGE = (400, 413, 422)  # answers to what is in a message, not to the webhook's state
_FEW, _MANY = 10, 24 * 3600 // _INTERVAL  # refusals after which a message is left out: for these answers, and a day of ticks else


class RefusedError(Exception):
    """The webhook did not take a message. Its address, which is a secret, is not in this one.

    Args:
        why: in words that follow "the alert webhook".
        patience: how often the same message is tried before it is left out.
    """

    def __init__(self, why: str, patience: int) -> None:
        super().__init__(f"the alert webhook {why}")
        self.patience = patience


class Webhook(dg.ConfigurableResource):
    """Takes messages as JSON, `text` for people (as Slack, Teams and Mattermost read it), the rest for programs."""

    url: str

    def tell(self, message: Message) -> None:
        """Post one message.

        Raises:
            RefusedError: the webhook did not take it.
        """
        try:
            requests.post(self.url, json=message, timeout=_SECONDS).raise_for_status()
        except requests.HTTPError as error:
            status = error.response.status_code
            raise RefusedError(f"answered {status}", _FEW if status in _OF_THE_MESSAGE else _MANY) from None
        except requests.RequestException as error:
            raise RefusedError(f"cannot be reached ({type(error).__name__})", _MANY) from None


@dg.sensor(minimum_interval_seconds=_INTERVAL, default_status=dg.DefaultSensorStatus.RUNNING)
def alert_failures(context: dg.SensorEvaluationContext, webhook: Webhook) -> dg.SkipReason:
    """One message for every evaluation whose gate did not pass, and one for every run that failed for another reason.

    The event log is read rather than hooks put on checks and runs: it also has what a killed run left behind. The cursor stands before
    the first message that was not taken, so that a webhook which is down or takes a few at a time is told the rest later, once. A
    message that is refused again and again is left out: it must not hold back those behind it. The first tick only notes where
    the log ends.
    """
    kept = json.loads(context.cursor) if context.cursor else {}
    cursor, refusals = Cursor(kept.get("positions"), at_once=1), Counter[str](kept.get("refusals"))
    if not kept:
        cursor.skip(context.instance.fetch_materializations, _EVALUATION)
        cursor.skip(context.instance.fetch_run_status_changes, dg.DagsterEventType.RUN_FAILURE)
        context.update_cursor(json.dumps({"positions": cursor.positions}))
        return dg.SkipReason("begins with what happens from now on")
    told, waits, end = 0, "", time.monotonic() + _TICK_SECONDS
    for message in _new_messages(context, cursor):
        if time.monotonic() > end:
            waits = ", the next tick goes on"
            break
        if message is None:
            continue
        kind = message["kind"]
        try:
            webhook.tell(message)
            told += 1
        except RefusedError as error:
            refusals[kind] += 1
            if refusals[kind] < error.patience:
                waits = f"; {error}, the rest is told when it takes it"
                break
            context.log.error(f"Left out, since {error} {refusals[kind]} times: {message['text']}")
        del refusals[kind]
    context.update_cursor(json.dumps({"positions": cursor.positions, "refusals": refusals}))
    return dg.SkipReason(f"messages told: {told}{waits}")


def webhook() -> Webhook:
    """The webhook, whose address is looked up when it is used: it is in no definition, log or launchpad."""
    return Webhook(url=dg.EnvVar(ALERT_URL))


def _new_messages(context: dg.SensorEvaluationContext, cursor: Cursor) -> Iterator[Message | None]:
    """What each new record gives cause to tell, None for nothing."""
    instance = context.instance
    for record in cursor.new(instance.fetch_materializations, _EVALUATION):
        yield of_evaluation(record)
    for record in cursor.new(instance.fetch_run_status_changes, dg.DagsterEventType.RUN_FAILURE):
        run = instance.get_run_by_id(record.run_id)
        yield of_failed_run(instance, run, record) if run and _is_of_here(context, run) else None


def _is_of_here(context: dg.SensorEvaluationContext, run: dg.DagsterRun) -> bool:
    """Whether a run is of this code location: other teams tell of theirs themselves."""
    here, there = context.code_location_origin, run.remote_job_origin
    return (here and here.location_name) == (there and there.location_name)
