"""Asset checks: what is wrong with a value, said beside it. A blocking one holds back the steps behind it."""

import dagster as dg

from pipelines.failures import plain_failures
from pipelines.resources import TaskFolder
from prompt_core.data import Splits, find_leakage
from prompt_core.evaluation import Evaluation


def build_checks(tasks: dg.PartitionsDefinition) -> list[dg.AssetChecksDefinition]:
    """All checks, per task: without partitions of its own, one failed task would hold back all others."""
    return [
        dg.asset_check(asset="splits", partitions_def=tasks)(no_leakage),
        dg.asset_check(asset="evaluation", blocking=True, partitions_def=tasks)(gate),
    ]


@plain_failures
def no_leakage(context: dg.AssetCheckExecutionContext, tasks: TaskFolder, splits: Splits) -> dg.AssetCheckResult:
    """No text of a held-out side, or a near-duplicate of one, stands on a side that the tuning sees."""
    leakage = find_leakage(splits, tasks.load(context.partition_key))
    return dg.AssetCheckResult(
        passed=not leakage,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{leakage.exact} equal and {leakage.near} similar texts stand on two sides.",
        metadata={"examples": dg.MetadataValue.json(list(leakage.examples))} if leakage else {},
    )


@plain_failures
def gate(evaluation: Evaluation) -> dg.AssetCheckResult:
    """The tuned prompt is better than the untuned baselines and not worse than its rivals and what is in production, shown on test rows."""
    return dg.AssetCheckResult(
        passed=evaluation.verdict.passed,
        description="; ".join(evaluation.verdict.reasons),
        metadata={"digest": evaluation.prompt_digest, "metric": evaluation.gate_metric},
    )
