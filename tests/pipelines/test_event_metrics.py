"""Counters: what the event log says, once each, also after a restart of the process that counts."""

import dagster as dg
from prometheus_client import CollectorRegistry

from pipelines.metrics import History


def materialized(instance: dg.DagsterInstance, asset: str, **metadata: object) -> None:
    instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition="reply", metadata=metadata))


def registry(instance: dg.DagsterInstance) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(History(instance))
    return registry


def test_runs_verdicts_seconds_tokens_and_publications_are_counted_once() -> None:
    @dg.job
    def retune() -> None:
        pass

    with dg.DagsterInstance.ephemeral() as instance:
        counted = registry(instance)
        assert counted.get_sample_value("promptmill_runs_total", {"job": "retune", "status": "success"}) is None
        retune.execute_in_process(instance=instance)
        for verdict, went_live in (("passed", True), ("failed", False), ("passed", True), ("passed", False)):
            materialized(instance, "tuned_prompt", **{"seconds": 2.5, "trained tokens": 100})
            materialized(instance, "evaluation", verdict=f"{verdict} (accuracy)")
            if verdict == "passed":
                materialized(instance, "published_prompt", **{"went live": went_live})
        for metrics in (counted, counted, registry(instance)):  # a second scrape, and a new process
            assert metrics.get_sample_value("promptmill_runs_total", {"job": "retune", "status": "success"}) == 1
            assert metrics.get_sample_value("promptmill_gate_verdicts_total", {"task": "reply", "verdict": "passed"}) == 3
            assert metrics.get_sample_value("promptmill_gate_verdicts_total", {"task": "reply", "verdict": "failed"}) == 1
            assert metrics.get_sample_value("promptmill_tuning_seconds_total", {"task": "reply"}) == 10
            assert metrics.get_sample_value("promptmill_tuning_tokens_total", {"task": "reply"}) == 400
            assert metrics.get_sample_value("promptmill_publications_total", {"task": "reply"}) == 2
