"""What is looked at in the values of assets, and what counts as right."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from prompt_core import PromptStore, TaskSpec
from prompt_core.data import Splits, find_leakage
from prompt_core.data.read import needed_columns
from prompt_core.evaluation import Evaluation

if TYPE_CHECKING:  # torch loads in the steps that need it, not with the code location
    from prompt_core import TunedPrompt

_FEW_ROWS = 50  # a third of them is tested on, which shows differences of some 25 points
_RARE = 0.1  # of the mean number of examples per label

_WARN = dg.AssetCheckSeverity.WARN


@dataclass(frozen=True)
class Judgement:
    """A check of one value.

    Attributes:
        asset: whose values.
        judge: gives the result for a task, a value and the store; its name and its docstring are the check's.
        blocking: whether a failure holds back the steps behind it.
        leaves_out: whether, in a run of several tasks, one that fails is left out of the later steps.
    """

    asset: str
    judge: Callable[[TaskSpec, Any, PromptStore], dg.AssetCheckResult]
    blocking: bool = False
    leaves_out: bool = True


def schema(task: TaskSpec, examples: pl.DataFrame, store: PromptStore) -> dg.AssetCheckResult:
    """The examples have the columns that the task reads, as texts, and nothing in them is empty."""
    expected = ["_id", *needed_columns(task)]
    empty = [name for name in examples.columns if examples[name].null_count()]
    strange = [name for name, kind in examples.schema.items() if kind != pl.String]
    passed = examples.columns == expected and not empty and not strange
    found = "" if passed else f" Found {examples.columns}; with empty cells {empty}, not of texts {strange}."
    return dg.AssetCheckResult(passed=passed, description=f"Expected: {', '.join(expected)}.{found}")


def size(task: TaskSpec, examples: pl.DataFrame, store: PromptStore) -> dg.AssetCheckResult:
    """There are enough examples to learn from and to show a difference on."""
    return dg.AssetCheckResult(
        passed=len(examples) >= _FEW_ROWS,
        severity=_WARN,
        description=f"{len(examples)} examples; fewer than {_FEW_ROWS} can show large differences only.",
        metadata={"rows": len(examples)},
    )


def class_balance(task: TaskSpec, splits: Splits, store: PromptStore) -> dg.AssetCheckResult:
    """No label of a classifier is far rarer than the others, on the side that it is learned from."""
    if task.objective != "classify":
        return dg.AssetCheckResult(passed=True, description="The task has no labels.")
    counts = dict(splits.train[task.data.target].value_counts().rows())
    rare = sorted(label for label, count in counts.items() if count < _RARE * len(splits.train) / len(counts))
    return dg.AssetCheckResult(
        passed=not rare,
        severity=_WARN,
        description=f"Rarer than a tenth of the mean: {', '.join(rare) or 'none'}.",
        metadata={"examples per label": counts},
    )


def no_leakage(task: TaskSpec, splits: Splits, store: PromptStore) -> dg.AssetCheckResult:
    """No text of a held-out side, or a near-duplicate of one, stands on a side that the tuning sees."""
    leakage = find_leakage(splits, task)
    return dg.AssetCheckResult(
        passed=not leakage,
        severity=dg.AssetCheckSeverity.ERROR if leakage.exact else _WARN,
        description=f"{leakage.exact} equal and {leakage.near} similar texts stand on two sides.",
        metadata={"examples": dg.MetadataValue.json(list(leakage.examples))} if leakage else {},
    )


def finite_prompt(task: TaskSpec, prompt: "TunedPrompt", store: PromptStore) -> dg.AssetCheckResult:
    """Every number of the tuned prompt is finite, and so are the losses on its way."""
    broken = sorted(name for name, tensor in prompt.tensors.items() if not tensor.isfinite().all())
    losses = (
        [*prompt.manifest.tuning.train_loss, *(look.loss for look in prompt.manifest.tuning.validation)] if prompt.manifest.tuning else []
    )
    strange = [loss for loss in losses if not abs(loss) < float("inf")]
    found = f"{', '.join(broken) or 'no tensor'} and {len(strange)} losses hold numbers that are not finite."
    return dg.AssetCheckResult(passed=not broken and not strange, description=found)


def gate(task: TaskSpec, evaluation: Evaluation, store: PromptStore) -> dg.AssetCheckResult:
    """The tuned prompt is better than the untuned baselines and not worse than its rivals and what is in production, shown on test rows."""
    return dg.AssetCheckResult(
        passed=evaluation.verdict.passed,
        description="; ".join(evaluation.verdict.reasons),
        metadata={"digest": evaluation.prompt_digest, "metric": evaluation.gate_metric},
    )


def round_trip(task: TaskSpec, publication: str, store: PromptStore) -> dg.AssetCheckResult:
    """What a consumer loads from the store, and what another machine loads from an export, is the prompt that was published."""
    from prompt_core import TunedPrompt
    from prompt_core.export import Published, export

    said = json.loads(publication)
    name, version = said["name"], said["version"]
    loaded = store.get(name, version)
    with TemporaryDirectory() as folder:
        export([Published(loaded, version, store.record(name, version).evaluation)], Path(folder) / name)
        exported = TunedPrompt.load(Path(folder) / name)
    digests = {"published": said["digest"], "in the store": loaded.digest, "in the export": exported.digest}
    shown = ", ".join(f"{where} {digest[:12]}" for where, digest in digests.items())
    return dg.AssetCheckResult(passed=len(set(digests.values())) == 1, description=f"{name}@{version}: {shown}.")


JUDGEMENTS = (
    Judgement("examples", schema, blocking=True),
    Judgement("examples", size),
    Judgement("splits", class_balance),
    Judgement("splits", no_leakage, blocking=True),
    Judgement("tuned_prompt", finite_prompt, blocking=True),
    # In a run of several tasks a rejected prompt is refused by its publication, and its report is still written.
    Judgement("evaluation", gate, blocking=True, leaves_out=False),
    Judgement("published_prompt", round_trip, blocking=True),
)
