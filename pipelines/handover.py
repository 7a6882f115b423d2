"""Orders of retunings and what came of them as folders, for processes that share a disk: how a step and `torchrun` speak.

<number>/task.json  folder  train.parquet  validation.parquet  live/     written by the step
<number>/prompt/  retuned.json   or   failed.json or unreachable.json    written by the first process of the group
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from prompt_core import PromptmillError
from prompt_core.errors import Unreachable
from prompt_core.task_file import parse_task

if TYPE_CHECKING:  # torch loads in the steps that need it, not with the code location
    from prompt_core.tuning import Order, Retuned

_FAILED, _UNREACHABLE = "failed.json", "unreachable.json"


def write_orders(folder: Path, orders: Sequence["Order"]) -> None:
    """Everything that tuning needs of each order."""
    for number, order in enumerate(orders):
        place = folder / str(number)
        place.mkdir()
        content = order.task.model_dump(mode="json", exclude_unset=True)  # what the file leaves open stays open to a search
        (place / "task.json").write_text(json.dumps({"folder": str(order.task.folder), "task": content}), encoding="utf-8")
        for name, side in zip(("train", "validation"), order.sides, strict=True):
            if side is not None:
                side.write_parquet(place / f"{name}.parquet")
        if order.live is not None:
            order.live.save(place / "live")


def read_orders(folder: Path) -> list["Order"]:
    """What `write_orders` wrote, in the same order."""
    from prompt_core import TunedPrompt
    from prompt_core.tuning import Order

    orders = []
    for number in range(sum(place.is_dir() for place in folder.iterdir())):
        place = folder / str(number)
        written = json.loads((place / "task.json").read_text(encoding="utf-8"))
        task = parse_task(written["task"], written["task"]["name"], Path(written["folder"]))
        validation = place / "validation.parquet"
        sides = pl.read_parquet(place / "train.parquet"), pl.read_parquet(validation) if validation.exists() else None
        orders.append(Order(task, sides, TunedPrompt.load(place / "live") if (place / "live").exists() else None))
    return orders


def write_outcomes(folder: Path, outcomes: Sequence["Retuned | PromptmillError"]) -> None:
    """The prompt of each order, or why there is none."""
    for number, outcome in enumerate(outcomes):
        place = folder / str(number)
        if isinstance(outcome, PromptmillError):
            failed = {"where": outcome.where, "what": outcome.what, "fix": outcome.fix}
            name = _UNREACHABLE if isinstance(outcome, Unreachable) else _FAILED
            (place / name).write_text(json.dumps(failed), encoding="utf-8")
            continue
        outcome.prompt.save(place / "prompt")
        retuned = {"start": outcome.start, "losses": outcome.losses, "why": outcome.why, "tokens": outcome.tokens}
        (place / "retuned.json").write_text(json.dumps(retuned), encoding="utf-8")


def read_outcomes(folder: Path, count: int) -> list["Retuned | PromptmillError"]:
    """What `write_outcomes` wrote for `count` orders."""
    from prompt_core import TunedPrompt
    from prompt_core.tuning import Retuned

    outcomes: list[Retuned | PromptmillError] = []
    for number in range(count):
        place = folder / str(number)
        for name, kind in ((_FAILED, PromptmillError), (_UNREACHABLE, Unreachable)):
            if (place / name).exists():
                outcomes.append(kind(**json.loads((place / name).read_text(encoding="utf-8"))))
                break
        else:
            retuned = json.loads((place / "retuned.json").read_text(encoding="utf-8"))
            outcomes.append(Retuned(TunedPrompt.load(place / "prompt"), **retuned))
    return outcomes
