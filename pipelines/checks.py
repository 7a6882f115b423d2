"""The judgements as asset checks, for a run of one task or of many. A blocking one holds back the steps behind it."""

from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg

# Dagster gives the result of a check the materialization that it is about; for one of several tasks nobody but we can.
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData as Target

from pipelines.batch import FailedBeforeError, Inputs, attempt, failure_of_some, in_a_line, is_last
from pipelines.failures import plain_failures
from pipelines.judgements import JUDGEMENTS, Judgement
from pipelines.ledger import Ledger
from pipelines.partitions import TASKS
from pipelines.resources import Store, TaskFolder


def build_checks() -> list[dg.AssetChecksDefinition]:
    """All checks, per task: without partitions of its own, one failed task would hold back all others."""
    return [_check(judgement) for judgement in JUDGEMENTS]


def _check(judgement: Judgement) -> dg.AssetChecksDefinition:
    name = judgement.judge.__name__
    spec = dg.AssetCheckSpec(
        name, asset=judgement.asset, description=judgement.judge.__doc__, blocking=judgement.blocking, partitions_def=TASKS
    )

    @dg.multi_asset_check(name=f"{judgement.asset}_{name}", specs=[spec], ins={"values": dg.AssetIn(judgement.asset)}, can_subset=True)
    @plain_failures
    def check(context: dg.AssetCheckExecutionContext, tasks: TaskFolder, store: Store, ledger: Ledger, values: Inputs):
        def judged(key: str) -> dg.AssetCheckResult:
            value = values[key]  # first, since of a task that has failed nothing else is said
            return judgement.judge(tasks.load(key), value, store.open())

        if len(values) == 1:
            (found,) = map(judged, values)
            return _as_results([dg.AssetCheckResult(**_parts(found), check_name=name, asset_key=spec.asset_key)])
        failed = {}
        for key in values:
            outcome = attempt(context, judged, key)
            if isinstance(outcome, FailedBeforeError):
                continue
            found = dg.AssetCheckResult(passed=False, description=in_a_line(outcome)) if isinstance(outcome, Exception) else outcome
            _report(context, spec, key, found)
            if not found.passed and found.severity == dg.AssetCheckSeverity.ERROR:
                failed[key] = f"{name} of {judgement.asset}: {found.description}"
        if failed and judgement.blocking and judgement.leaves_out:
            ledger.note(context.run, judgement.asset, ledger.failed(context.run, judgement.asset) | failed)
        if failed and judgement.blocking and is_last(context.op_execution_context.job_def, spec.asset_key):
            raise failure_of_some(failed, len(values))
        return _as_results([])

    return check


def _as_results(found: Sequence[dg.AssetCheckResult]) -> Iterator[dg.AssetCheckResult]:
    """A generator: Dagster takes no other iterator for results."""
    yield from found


def _report(context: dg.AssetCheckExecutionContext, spec: dg.AssetCheckSpec, key: str, found: dg.AssetCheckResult) -> None:
    """The result for one of several tasks, which Dagster takes as an event only."""
    wanted = dg.AssetRecordsFilter(spec.asset_key, asset_partitions=[key])
    latest = context.instance.fetch_materializations(wanted, limit=1).records
    target = [Target(storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp) for record in latest]
    context.op_execution_context.log_event(
        dg.AssetCheckEvaluation(
            spec.asset_key,
            spec.name,
            **_parts(found),
            blocking=spec.blocking,
            partition=key,
            target_materialization_data=target[0] if target else None,
        )
    )


def _parts(found: dg.AssetCheckResult) -> dict[str, Any]:
    return {"passed": found.passed, "description": found.description, "severity": found.severity, "metadata": found.metadata}
