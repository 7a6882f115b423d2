"""What is told of a failed gate and of a failed run: `text` for people, the rest for programs."""

from typing import Any, TypeAlias

import dagster as dg

from pipelines.history import metadata_of
from pipelines.judgements import gate

Message: TypeAlias = dict[str, Any]

_LONGEST = 4_000  # characters; Slack and Teams refuse texts of some ten thousand, and hundreds of tasks may fail in one run


def of_evaluation(record: dg.EventLogRecord) -> Message | None:
    """Of an evaluation whose gate did not pass; None where it did."""
    found = metadata_of(record)
    if not str(found.get("verdict", "")).startswith("failed"):
        return None
    return {
        "text": _cut(f"Gate of {record.partition_key} failed, production stays as it is:\n{found.get('reasons', '')}"),
        "kind": "gate_failed",
        "task": record.partition_key,
        "run": record.run_id,
        "digest": found.get("prompt digest"),
    }


def of_failed_run(instance: dg.DagsterInstance, run: dg.DagsterRun, end: dg.EventLogRecord) -> Message | None:
    """Of a run that failed, given the event that says so; None where its gate is the only reason, which has a message of its own."""
    failed = _events(instance, run, dg.DagsterEventType.STEP_FAILURE)
    reasons = [reason for event in failed for reason in _reasons(instance, run, event)]
    if failed and not reasons:
        return None
    task = run.tags.get("dagster/partition")
    said = "; ".join(reasons) or end.event_log_entry.get_dagster_event().message or "the run's process was lost"
    return {
        "text": _cut(f"Run {run.run_id[:8]} of {task or run.job_name} failed: {said}"),
        "kind": "run_failed",
        "task": task,
        "run": run.run_id,
        "job": run.job_name,
    }


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… (the rest is in Dagster's UI)"


def _reasons(instance: dg.DagsterInstance, run: dg.DagsterRun, failed: dg.DagsterEvent) -> list[str]:
    """Why a step failed: its innermost error, or of a blocking check what it found; nothing for the gate."""
    error = failed.step_failure_data.error
    assert error is not None  # there is one in every failure of a step
    if error.cls_name == "DagsterAssetCheckFailedError":  # it names the check alone
        return [
            f"check {found.check_name} of {found.asset_key.to_user_string()}: {found.description}"
            for event in _events(instance, run, dg.DagsterEventType.ASSET_CHECK_EVALUATION)
            if event.step_key == failed.step_key and _holds_back(found := event.asset_check_evaluation_data)
        ]
    while error.cause:
        error = error.cause
    return [f"{failed.step_key}: {error.message.strip().removeprefix('dagster._core.definitions.events.Failure: ')}"]


def _holds_back(found: dg.AssetCheckEvaluation) -> bool:
    """Whether a result kept a run from going on for a reason that nobody else tells."""
    return not found.passed and found.severity == dg.AssetCheckSeverity.ERROR and found.check_name != gate.__name__


def _events(instance: dg.DagsterInstance, run: dg.DagsterRun, kind: dg.DagsterEventType) -> list[dg.DagsterEvent]:
    return [entry.get_dagster_event() for entry in instance.all_logs(run.run_id, of_type=kind)]
