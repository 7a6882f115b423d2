"""One process of a group that tunes together: `torchrun ... -m pipelines.torchrun FOLDER CHECKPOINTS`, started by pipelines/pipes.py.

Every process reads the same orders and takes its share of every batch; the first one writes the outcomes, and tells Dagster how it goes.
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from dagster_pipes import PipesContext, open_dagster_pipes

from pipelines.handover import read_orders, write_outcomes
from pipelines.progress import LoggedProgress
from prompt_core import PromptmillError
from prompt_core.backbone import load_backbone
from prompt_core.tuning import Retuned, retune_fleet
from prompt_core.tuning.parallel import process_group


def main(folder: Path, checkpoints: Path) -> None:
    """Tune the orders in a folder as one fleet."""
    orders = read_orders(folder)
    with process_group() as first, open_dagster_pipes() if first else nullcontext() as pipes:
        outcomes: Sequence[Retuned | PromptmillError]
        try:
            backbone = load_backbone(orders[0].task.backbone, orders[0].task.folder)
            outcomes = retune_fleet(orders, backbone, **_callbacks(pipes), checkpoints=checkpoints)
        except PromptmillError as error:  # of all of them; every process meets it
            outcomes = [error] * len(orders)
        if first:
            write_outcomes(folder, outcomes)


def _callbacks(pipes: PipesContext | None) -> dict[str, object]:
    if pipes is None:
        return {}
    shown = LoggedProgress(pipes.log.info, pipes.extras["every_seconds"])
    return {"on_step": shown.fleet, "on_search": shown.search, "on_round": shown.round}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
