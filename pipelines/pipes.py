"""Where the tuning of a step runs: in its own process, or in several that `torchrun` starts and Dagster Pipes listens to."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import dagster as dg

from pipelines.handover import read_outcomes, write_orders
from pipelines.progress import LoggedProgress
from pipelines.settings import REPOSITORY
from prompt_core import PromptmillError

if TYPE_CHECKING:  # torch loads in the steps that need it, not with the code location
    from prompt_core.backbone import Backbone
    from prompt_core.tuning import Order, Retuned


class Processes(dg.ConfigurableResource):
    """The processes that tune.

    Attributes:
        torchrun: arguments of `torchrun`, such as `--standalone --nproc-per-node=4`; without any, the step's own process tunes.
        scratch: a folder that all of them see, for the orders and the outcomes.
    """

    torchrun: str = ""
    scratch: str

    def retune(
        self, context: dg.AssetExecutionContext, orders: Sequence["Order"], backbone: "Backbone", shown: LoggedProgress, checkpoints: Path
    ) -> list["Retuned | PromptmillError"]:
        """As `prompt_core.tuning.retune_fleet`. Several processes exchange their sums, so that a prompt is equal to rounding only."""
        if not self.torchrun:
            from prompt_core.tuning import retune_fleet

            callbacks = {"on_step": shown.fleet, "on_search": shown.search, "on_round": shown.round}
            return retune_fleet(orders, backbone, **callbacks, checkpoints=checkpoints)
        Path(self.scratch).mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=self.scratch) as folder:
            write_orders(Path(folder), orders)
            launcher = [sys.executable, "-m", "torch.distributed.run", *shlex.split(self.torchrun), "-m", "pipelines.torchrun"]
            dg.PipesSubprocessClient(cwd=str(REPOSITORY)).run(
                context=context, command=[*launcher, folder, str(checkpoints)], extras={"every_seconds": shown.every_seconds}
            )
            return read_outcomes(Path(folder), len(orders))
