"""`retune_fleet`: each task tuned from its own start and, beside that, from the prompt that is live; the better one goes on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.errors import PromptmillError
from prompt_core.manifest import Validation
from prompt_core.seen import why_seen
from prompt_core.task import TaskSpec
from prompt_core.tuning.member import Step
from prompt_core.tuning.prepared import Sides
from prompt_core.tuning.search import OnSearch
from prompt_core.tuning.tune import tune_fleet

if TYPE_CHECKING:
    from prompt_core.text.search import OnRound

Start = Literal["cold", "warm"]


@dataclass(frozen=True)
class Order:
    """A task to be retuned.

    Attributes:
        task: what to tune and how.
        sides: its (train, validation) frames.
        live: the prompt in production, if one is.
    """

    task: TaskSpec
    sides: Sides
    live: TunedPrompt | None = None


@dataclass(frozen=True)
class Retuned:
    """What came of an order.

    Attributes:
        prompt: the better one on validation; of equal ones the cold one. Its manifest's `started_from` is the digest of the
            live prompt where that is what it started from.
        start: cold, from the task's own start; warm, from the live prompt.
        losses: the least validation loss from each start that was tuned and looked at validation rows.
        why: one line for people.
        tokens: example tokens trained for it, from both starts.
    """

    prompt: TunedPrompt
    start: Start
    losses: dict[Start, float]
    why: str
    tokens: int = 0


def retune_fleet(
    orders: Sequence[Order],
    backbone: Backbone | None = None,
    *,
    on_step: Callable[[int], Callable[[int, Step], None]] | None = None,
    on_search: OnSearch | None = None,
    on_round: OnRound | None = None,
    checkpoints: Path | None = None,
) -> list[Retuned | PromptmillError]:
    """Tune all orders side by side, each from its own start and, where that can be compared, also from its live prompt.

    Args:
        orders: tasks on one backbone.
        backbone: as for `tune_fleet`, like the rest.
        on_step: given the number of prompts in the fleet, what is called after each of their steps.

    Returns:
        For each order what came of it, or what kept it from a prompt from its own start.

    Raises:
        PromptmillError: as `tune_fleet`.
    """
    with TemporaryDirectory() as folder:
        tasks = [order.task for order in orders]
        warm: dict[int, TaskSpec] = {}
        reasons = [_why_cold(order) for order in orders]
        for number, order in enumerate(orders):
            if order.live is not None and not reasons[number]:
                place = Path(folder) / str(number)
                order.live.save(place)
                warm[number] = _from(order.task, place)
        fleet = [*tasks, *warm.values()]
        sides = [*(order.sides for order in orders), *(orders[number].sides for number in warm)]
        tokens, before = [0] * len(fleet), [0] * len(fleet)
        show = on_step(len(fleet)) if on_step else None

        def count(number: int, step: Step) -> None:
            if step.tokens < before[number]:  # another round of self-training
                before[number] = 0
            tokens[number] += step.tokens - before[number]
            before[number] = step.tokens
            if show:
                show(number, step)

        results = tune_fleet(
            fleet,
            sides,
            backbone,
            on_step=count,
            on_search=on_search,
            on_round=on_round,
            checkpoints=checkpoints,
        )
    from_live = dict(zip(warm, range(len(orders), len(fleet)), strict=True))
    outcomes: list[Retuned | PromptmillError] = []
    for number, reason in enumerate(reasons):
        beside = from_live.get(number)
        outcome = better(results[number], None if beside is None else results[beside], reason)
        if isinstance(outcome, Retuned):
            outcome = replace(outcome, tokens=tokens[number] + (0 if beside is None else tokens[beside]))
        outcomes.append(outcome)
    return outcomes


def _from(task: TaskSpec, live: Path) -> TaskSpec:
    """The task with the live prompt, a folder, as its start."""
    prompt = task.prompt.model_copy(update={"start": "prompt", "start_from": str(live), "text": None})
    return task.model_copy(update={"prompt": prompt})


def _why_cold(order: Order) -> str:
    """Why the live prompt is no start to compare with; nothing where it is one."""
    task, live = order.task, order.live
    if live is None:
        return "no prompt is live"
    if task.prompt.kind == "text" or live.manifest.kind == "text":
        return "a text prompt is searched, not continued"
    if task.search:
        return "its settings are chosen by a search, which does not start from a prompt"
    train, validation = order.sides
    if validation is None or validation.is_empty():
        return "there are no validation rows to choose a start by"
    if live.manifest.kind != task.prompt.kind:
        return f"the live prompt is of kind {live.manifest.kind}"
    try:
        seen = why_seen(live, task, train, validation, validation_too=True)
    except PromptmillError as error:
        return f"the live prompt cannot be read ({error})"
    return f"the live prompt may have seen rows that are held out now: {seen}" if seen else ""


def better(cold: TunedPrompt | PromptmillError, warm: TunedPrompt | PromptmillError | None, reason: str) -> Retuned | PromptmillError:
    """What goes on of the two starts; `reason` says why there is no warm one."""
    if isinstance(cold, PromptmillError):
        return cold
    if warm is None:
        return Retuned(cold, "cold", _losses(cold=cold), f"from the task's own start: {reason}")
    if isinstance(warm, PromptmillError):
        return Retuned(cold, "cold", _losses(cold=cold), f"from the task's own start: the live prompt does not fit ({warm})")
    if cold.manifest.tokens != warm.manifest.tokens:
        what = f"the live prompt has {warm.manifest.tokens} tokens, the task asks for {cold.manifest.tokens}"
        return Retuned(cold, "cold", _losses(cold=cold), f"from the task's own start: {what}")
    losses = _losses(cold=cold, warm=warm)
    start: Start = "warm" if losses["warm"] < losses["cold"] else "cold"
    shown = f"validation loss {losses['cold']:.4f} from the task's own start, {losses['warm']:.4f} from the live prompt"
    return Retuned(warm if start == "warm" else cold, start, losses, shown)


def _losses(**prompts: TunedPrompt) -> dict[Start, float]:
    looks = {start: prompt.manifest.tuning.validation for start, prompt in prompts.items() if prompt.manifest.tuning}
    return {start: min(map(_comparable, found)) for start, found in looks.items() if found}  # type: ignore[misc]


def _comparable(look: Validation) -> float:
    """Its loss; one that is not finite is worse than any other."""
    return math.inf if look.loss is None else look.loss
