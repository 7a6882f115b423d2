"""Counters for Prometheus, read from Dagster's own history: `python -m pipelines.metrics --host 127.0.0.1 --port 9464`.

Runs are processes that come and go, and some are killed; what they did stands in the event log. So one process reads that, and
no run has to report anything. It counts the whole history when it starts, so that counters do not go back. Which versions are live
stands beside them, from the store.
"""

import argparse
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Iterable

import dagster as dg
from dagster import DagsterEventType as Event
from prometheus_client import start_http_server
from prometheus_client.core import REGISTRY, CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from pipelines.history import Cursor, metadata_of
from pipelines.live_versions import LiveVersions
from pipelines.settings import Settings
from prompt_core import PromptmillError, PromptStore

_ENDED = {Event.RUN_SUCCESS: "success", Event.RUN_FAILURE: "failure", Event.RUN_CANCELED: "canceled"}
_EVALUATION, _TUNED, _PUBLISHED = (dg.AssetKey(name) for name in ("evaluation", "tuned_prompt", "published_prompt"))


class History(Collector):
    """The counters of one Dagster instance; every scrape reads what is new."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance, self._cursor, self._lock = instance, Cursor(), threading.Lock()
        self._runs = _Numbers("promptmill_runs", "Ended runs.", "job", "status")
        self._verdicts = _Numbers("promptmill_gate_verdicts", "Evaluations by the verdict of their gate.", "task", "verdict")
        self._seconds = _Numbers("promptmill_tuning_seconds", "Seconds of tuning.", "task")
        self._tokens = _Numbers("promptmill_tuning_tokens", "Tokens of examples trained on.", "task")
        self._publications = _Numbers("promptmill_publications", "Prompts that went live.", "task")

    def collect(self) -> Iterable[Metric]:
        """Read on and give all numbers: called by every scrape."""
        with self._lock:
            self._read()
            for counter in (self._runs, self._verdicts, self._seconds, self._tokens, self._publications):
                yield counter.filled()

    def _read(self) -> None:
        for event, status in _ENDED.items():
            for record in self._cursor.new(self._instance.fetch_run_status_changes, event):
                self._runs.add(1, record.event_log_entry.job_name or "", status)
        for record in self._cursor.new(self._instance.fetch_materializations, _EVALUATION):
            self._verdicts.add(1, record.partition_key or "", str(metadata_of(record).get("verdict", "")).split(" ")[0])
        for record in self._cursor.new(self._instance.fetch_materializations, _TUNED):
            found = metadata_of(record)
            shared = int(found.get("tuned together", 1))  # a fleet's seconds stand beside each of its prompts
            self._seconds.add(float(found.get("seconds", 0)) / shared, record.partition_key or "")
            self._tokens.add(float(found.get("trained tokens", 0)), record.partition_key or "")
        for record in self._cursor.new(self._instance.fetch_materializations, _PUBLISHED):
            if metadata_of(record).get("went live", True):  # what earlier commits wrote does not say
                self._publications.add(1, record.partition_key or "")


class _Numbers:
    """A number per combination of labels."""

    def __init__(self, name: str, help: str, *labels: str) -> None:
        self._name, self._help, self._labels = name, help, labels
        self._values: dict[tuple[str, ...], float] = defaultdict(float)

    def add(self, value: float, *labels: str) -> None:
        self._values[labels] += value

    def filled(self) -> Metric:
        metric = CounterMetricFamily(self._name, self._help, labels=self._labels)
        for labels, value in sorted(self._values.items()):
            metric.add_metric(labels, value)
        return metric


def main() -> None:
    """Serve `/metrics` until the process is told to stop."""
    parser = argparse.ArgumentParser(
        description="Serve Promptmill's counters to Prometheus, from the history in DAGSTER_HOME and PROMPTMILL_STORE."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=9464)
    given = parser.parse_args()
    stopped = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: stopped.set())
    store = PromptStore(Settings.from_environment().store_url)
    with dg.DagsterInstance.get() as instance:
        REGISTRY.register(History(instance))
        REGISTRY.register(LiveVersions(store))
        server, _ = start_http_server(given.port, given.host)
        stopped.wait()
        server.shutdown()


if __name__ == "__main__":
    try:
        main()
    except PromptmillError as error:
        sys.exit(f"Error: {error}")
