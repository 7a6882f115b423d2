"""`tune`, `tune_fleet` and `tune_multitask`: from tasks to artifacts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from torch import nn
from torch.distributed import is_initialized

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone, load_backbone
from prompt_core.deploy import check_base
from prompt_core.errors import PromptmillError
from prompt_core.prompts import MultitaskPrompt, SoftPrompt
from prompt_core.task import TaskSpec
from prompt_core.tuning.gradient import optimise
from prompt_core.tuning.member import Member, OnStep, Step
from prompt_core.tuning.memory import is_lack_of_memory, no_memory, reason_of
from prompt_core.tuning.parallel import by_first
from prompt_core.tuning.prepared import Prepared, Sides, own_sides
from prompt_core.tuning.search import OnSearch, Search
from prompt_core.tuning.self_training import SelfTraining

if TYPE_CHECKING:
    from prompt_core.ladder.climb import Ladder
    from prompt_core.text.search import OnRound

OnFleetStep = Callable[[int, Step], None]


def tune(
    task: TaskSpec,
    train: pl.DataFrame | None = None,
    validation: pl.DataFrame | None = None,
    backbone: Backbone | None = None,
    *,
    on_step: OnStep | None = None,
    on_search: OnSearch | None = None,
    on_round: OnRound | None = None,
    checkpoints: Path | None = None,
) -> TunedPrompt:
    """Tune the prompt of a task. Same task, data, backbone, versions and device: same digest.

    Where the task file asks for a search, that chooses the settings first; only its time can make a rerun differ.

    Args:
        task: what to tune and how.
        train: example frame; by default the task's data is read, cleaned and split, and its test rows are left alone.
        validation: example frame, the other side of the same split.
        backbone: the loaded frozen model; by default the task's own is loaded, once per process.
        on_step: called after every step with its loss, rate, speed and ETA.
        on_search: called after every step of a search.
        on_round: called after every round of a search for a text prompt.
        checkpoints: a folder for the states that an interrupted tuning goes on from when it is started again; the
            result is the same, to the bit.

    Raises:
        PromptmillError: the task, its data or its backbone cannot be used; the message says what to do.
    """
    (result,) = tune_fleet(
        [task],
        None if train is None else [(train, validation)],
        backbone,
        on_step=None if on_step is None else lambda _, step: on_step(step),
        on_search=on_search,
        on_round=on_round,
        checkpoints=checkpoints,
    )
    if isinstance(result, PromptmillError):
        raise result
    return result


def tune_fleet(
    tasks: Sequence[TaskSpec],
    examples: Sequence[Sides] | None = None,
    backbone: Backbone | None = None,
    *,
    on_step: OnFleetStep | None = None,
    on_search: OnSearch | None = None,
    on_round: OnRound | None = None,
    checkpoints: Path | None = None,
) -> list[TunedPrompt | PromptmillError]:
    """Tune the prompts of many tasks (or seeds, or settings of one) side by side on one frozen model.

    Each prompt is what `tune` makes of its task alone, to rounding: it keeps its own optimizer, schedule, early stopping
    and random stream. One that is through, or that fails, leaves, and the others go on. Tasks that ask for a search are
    searched before, one after another, each a fleet of its own; with the settings chosen they join the common one.

    Args:
        tasks: what to tune and how; all name the same backbone.
        examples: (train, validation) frames of each task; by default each task's own data.
        backbone: the loaded frozen model; by default the tasks' own.
        on_step: called with the index of a task after each of its steps.
        on_search: called after every step of a search.
        on_round: called after every round of a search for a text prompt.
        checkpoints: as for `tune`; the states are those of the fleet as a whole.

    Returns:
        For each task its prompt, or what kept it from one.

    Raises:
        PromptmillError: the backbone cannot be used, or the tasks name different ones.
    """
    backbone = _common_backbone(tasks, backbone)
    prepared: dict[int, Prepared] = {}
    results: dict[int, TunedPrompt | PromptmillError] = {}
    searches: list[Search | Ladder] = []
    for number, task in enumerate(tasks):
        try:
            check_base(backbone.causal, task.deploy, f"task {task.name}: deploy", backbone.identity.name)
            sides = examples[number] if examples else own_sides(task)
            if task.prompt.kind == "text":
                from prompt_core.text.tune import tune_text  # which is made of parts of this package

                results[number] = by_first(partial(tune_text, task, sides, backbone, on_round, checkpoints))
                continue
            if task.climbs:
                from prompt_core.ladder.climb import Ladder

                ladder = Ladder(task, sides, backbone, on_round, on_search, checkpoints)
                best = ladder.climb()
                searches.append(ladder)  # one that fails keeps what was paid for
                if isinstance(best, TunedPrompt):
                    results[number] = best
                else:
                    prepared[number] = best
                continue
            if not task.search:
                prepared[number] = Prepared(task, sides, backbone)
                continue
            search = Search(task, sides, backbone, on_search, checkpoints)
            searches.append(search)
            ready = search.finalist(search.run())
            if task.search.final == "average":
                results[number] = search.averaged(ready)
            else:
                prepared[number] = ready
        except PromptmillError as error:
            results[number] = error
        except (MemoryError, RuntimeError) as error:
            if not is_lack_of_memory(error) or is_initialized():  # the other processes would wait for this one
                raise
            results[number] = no_memory("what precedes its tuning", reason_of(error))
    results |= _tuned(prepared, backbone, on_step, checkpoints)
    for done in searches:
        done.close()
    return [results[number] for number in range(len(tasks))]


def _tuned(
    prepared: dict[int, Prepared], backbone: Backbone, on_step: OnFleetStep | None, checkpoints: Path | None
) -> dict[int, TunedPrompt | PromptmillError]:
    """The prompts of tasks that are ready; those that ask for self-training are tuned again with the others that do, round by round."""
    results: dict[int, TunedPrompt | PromptmillError] = {}
    rounds: dict[int, SelfTraining] = {}
    for number, ready in prepared.items():
        if ready.task.tune.self_training:
            try:
                rounds[number] = SelfTraining(ready, backbone)
            except PromptmillError as error:
                results[number] = error
    going = {number: ready for number, ready in prepared.items() if number not in results}
    while going:
        members = [
            Member([ready.part], ready.spec, ready.generator, partial(on_step, number) if on_step else None)
            for number, ready in going.items()
        ]
        records = optimise(backbone, members, _checkpoint(checkpoints, list(going.values())))
        tuned, going = going, {}
        for (number, ready), record in zip(tuned.items(), records, strict=True):
            outcome: Prepared | TunedPrompt | PromptmillError
            if number in rounds:
                outcome = rounds[number].after(ready, record)
            else:
                outcome = record if isinstance(record, PromptmillError) else ready.artifact(record)
            if isinstance(outcome, Prepared):
                going[number] = outcome
            else:
                results[number] = outcome
    return results


def tune_multitask(
    tasks: Sequence[TaskSpec],
    examples: Sequence[Sides] | None = None,
    backbone: Backbone | None = None,
    *,
    on_step: OnStep | None = None,
) -> list[TunedPrompt]:
    """Tune one soft prompt for several tasks, with a low-rank factor for each (multitask prompt tuning).

    What the tasks have in common is learned from the examples of all. Each gets an ordinary soft prompt, the product of
    both; a further task can start from any of them (`prompt.start: prompt`).

    Args:
        tasks: `prompt.kind: soft` of one length, on one backbone and with one `tune`. The start is that of the first.
        examples: (train, validation) frames of each task; by default each task's own data.
        backbone: the loaded frozen model; by default the tasks' own.
        on_step: called after every step with the mean loss of the tasks.

    Raises:
        PromptmillError: a task cannot be used, or does not fit the first.
    """
    backbone = _common_backbone(tasks, backbone)
    for task in tasks:
        if task.tune != tasks[0].tune:
            what = f"is not that of {tasks[0].name}, with which it is tuned"
            raise PromptmillError(f"task {task.name}: tune", what, "Give all tasks the same, seed included.")
        for field, asks in (("search", task.search), ("self_training", task.tune.self_training)):
            if asks:
                what = f"asks for a {field.replace('_', '-')}, which several tasks with one prompt cannot have"
                raise PromptmillError(f"task {task.name}: tune.{field}", what, "Leave it out.")
    prepared = [Prepared(task, examples[number] if examples else None, backbone) for number, task in enumerate(tasks)]
    shared = nn.Parameter(prepared[0].prompt.state().rows.detach().clone())
    for ready in prepared:
        where = f"task {ready.task.name}: prompt"
        if not isinstance(ready.prompt, SoftPrompt):
            raise PromptmillError(where, "is not a plain soft prompt", "Write kind: soft, without a network.")
        state = ready.prompt.state()
        if len(state.rows) != len(shared):
            what = f"has {len(state.rows)} tokens, that of {tasks[0].name} has {len(shared)}"
            raise PromptmillError(f"{where}.tokens", what, "Give all tasks one length.")
        ready.prompt = MultitaskPrompt(backbone, shared, state.root)
    (record,) = optimise(backbone, [Member([ready.part for ready in prepared], tasks[0].tune, prepared[0].generator, on_step)])
    if isinstance(record, PromptmillError):
        raise record
    return [ready.artifact(record) for ready in prepared]


def _checkpoint(folder: Path | None, prepared: Sequence[Prepared]) -> Path | None:
    """The file of exactly this fleet: other data, settings or versions have another."""
    if folder is None:
        return None
    together = hashlib.sha256("".join(ready.fingerprint for ready in prepared).encode())
    return folder / f"{together.hexdigest()[:32]}.safetensors"


def _common_backbone(tasks: Sequence[TaskSpec], backbone: Backbone | None) -> Backbone:
    if others := [task.name for task in tasks if task.backbone != tasks[0].backbone]:
        what = f"does not name the backbone of {tasks[0].name}"
        raise PromptmillError(f"task {others[0]}: backbone", what, "A fleet tunes on one frozen model; tune it apart.")
    return backbone or load_backbone(tasks[0].backbone, tasks[0].folder)
