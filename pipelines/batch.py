"""A step of many tasks: each is made or fails alone, with metadata, version and reason of its own.

A backfill is one run (`BackfillPolicy.single_run`), so that the prompts of all its tasks are tuned as one fleet. Dagster counts a
step as a whole: it succeeds for all partitions of a run or for none. So a step of several tasks reports each materialization itself
and keeps Dagster from reporting all of them; a task that failed is noted, later steps leave it out, and the last step of the run
says who failed and why. A step of one task is an ordinary one.

A fault of disk or network fails nobody at once: the step is tried again for all its tasks, and its last attempt leaves out whom it meets.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import dagster as dg

# An output with this mark is stored and handed on, but not reported as a materialization. Dagster has no public name for that.
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION as UNREPORTED

from pipelines.failures import is_retried
from prompt_core import PromptmillError

T = TypeVar("T")


@dataclass(frozen=True)
class Made(Generic[T]):
    """The value of an asset for one task.

    Attributes:
        digest: of its content, the data version.
        metadata: what people see beside it.
    """

    value: T
    digest: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """What a step of several tasks made, with the tags of each, and why the others failed."""

    made: Mapping[str, Made[Any]]
    tags: Mapping[str, Mapping[str, str]]
    failed: Mapping[str, str]


class FailedBeforeError(Exception):
    """The task has failed in an earlier step of this run, for the reason that the message says."""


class Inputs(Mapping[str, T]):
    """The values of an asset by task, each loaded when it is asked for.

    Args:
        asset: its name.
        keys: the tasks.
        load: the value of a task and its digest.
        failed: reasons by task, of those that an earlier step of this run could not make.
    """

    def __init__(
        self, asset: str, keys: Sequence[str], load: Callable[[str], tuple[T, str]], failed: Mapping[str, str] | None = None
    ) -> None:
        self.asset, self._keys, self._load, self._failed = asset, keys, load, failed or {}
        self._digests: dict[str, str] = {}

    @classmethod
    def of(cls, asset: str, values: Mapping[str, Made[T]]) -> "Inputs[T]":
        """Values that are at hand."""
        return cls(asset, list(values), lambda key: (values[key].value, values[key].digest))

    def __getitem__(self, key: str) -> T:
        """The value of a task.

        Raises:
            FailedBeforeError: an earlier step of this run failed for it.
            PromptmillError: it was never made, or is damaged.
        """
        self.check(key)
        value, self._digests[key] = self._load(key)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def check(self, key: str) -> None:
        """Refuse a task that an earlier step of this run failed for.

        Raises:
            FailedBeforeError: for its reason.
        """
        if key in self._failed:
            raise FailedBeforeError(self._failed[key])

    def tags(self, key: str) -> dict[str, str]:
        """Dagster's provenance of what was loaded for a task."""
        return {f"dagster/input_data_version/{self.asset}": self._digests[key]} if key in self._digests else {}


Outcome = Made[Any] | Exception


def each_task(
    context: dg.AssetExecutionContext,
    make: Callable[[str], Made[Any]],
    *inputs: Inputs[Any],
    on_task: Callable[[int, int], object] = lambda done, total: None,
    seen_together: Callable[[dict[str, Made[Any]]], Mapping[str, Mapping[str, Any]]] = lambda made: {},
):
    """What an asset returns that is made task by task.

    Args:
        make: the value of a task.
        inputs: what `make` reads, for the provenance.
        on_task: called with the number of finished tasks, from 0, and of all.
        seen_together: further metadata by task, given the values of all that were made in this run.
    """

    def unless_failed(key: str) -> Made[Any]:
        for values in inputs:
            values.check(key)
        return make(key)

    keys = context.partition_keys
    outcomes: dict[str, Outcome] = {}
    for key in keys:
        on_task(len(outcomes), len(keys))
        outcomes[key] = attempt(context, unless_failed, key)
    on_task(len(keys), len(keys))
    further = seen_together({key: outcome for key, outcome in outcomes.items() if isinstance(outcome, Made)})
    for key, metadata in further.items():
        outcomes[key] = replace(outcomes[key], metadata={**outcomes[key].metadata, **metadata})
    return hand_on(context, outcomes, *inputs)


def attempt(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, make: Callable[[str], T], key: str) -> T | Exception:
    """What `make` gives for a task, or what kept it from that. A fault of the machine is raised while the step may still be retried."""
    try:
        return make(key)
    except Exception as error:
        foreseen = isinstance(error, (PromptmillError, FailedBeforeError))
        if is_retried(error, context) or not (foreseen or len(context.partition_keys) > 1):
            raise
        if not foreseen:
            context.log.error(f"{key}: {error}", exc_info=error)
        return error


def hand_on(context: dg.AssetExecutionContext, outcomes: Mapping[str, Outcome], *inputs: Inputs[Any]):
    """What an asset returns, given what came of each task.

    Raises:
        PromptmillError: the only task of the run failed, or one met a fault that the step is tried again for. Prompts that
            were tuned are taken again then.
    """
    for outcome in outcomes.values():
        if isinstance(outcome, Exception) and is_retried(outcome, context):
            raise outcome
    if len(outcomes) == 1:
        (outcome,) = outcomes.values()
        if isinstance(outcome, Exception):
            raise outcome
        return dg.MaterializeResult(value=outcome.value, data_version=dg.DataVersion(outcome.digest), metadata=outcome.metadata)
    return _report(context, outcomes, inputs)


def _report(
    context: dg.AssetExecutionContext, outcomes: Mapping[str, Outcome], inputs: Sequence[Inputs[Any]]
) -> Iterator[dg.Output[Batch]]:
    made = {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, Made)}
    failed = {key: in_a_line(outcome) for key, outcome in outcomes.items() if isinstance(outcome, Exception)}
    for key, reason in failed.items():
        if not isinstance(outcomes[key], FailedBeforeError):
            context.log.error(f"{key} fails alone: {reason}")
    code_version = context.assets_def.code_versions_by_key[context.asset_key]
    tags = {
        key: {
            "dagster/data_version": value.digest,
            "dagster/code_version": str(code_version),
            **{name: tag for loaded in inputs for name, tag in loaded.tags(key).items()},
        }
        for key, value in made.items()
    }
    yield dg.Output(Batch(made, tags, failed), metadata={UNREPORTED: True})
    if failed and is_last(context.job_def, context.asset_key):
        raise failure_of_some(failed, len(outcomes))


def is_last(job: dg.JobDefinition, asset: dg.AssetKey) -> bool:
    """Whether nothing in a run of this job is made from an asset."""
    layer = job.asset_layer
    return not layer.asset_graph.get(asset).child_keys & layer.executable_asset_keys


def failure_of_some(reasons: Mapping[str, str], total: int) -> dg.Failure:
    """What ends a run in which some of its tasks failed."""
    lines = "\n".join(f"{key}: {reason}" for key, reason in reasons.items())
    return dg.Failure(f"{len(reasons)} of {total} tasks failed, the others are done.\n{lines}", allow_retries=False)


def in_a_line(error: Exception) -> str:
    """An error as the reason of a task."""
    return str(error) if isinstance(error, (PromptmillError, FailedBeforeError)) else f"{type(error).__name__}: {error}"
