"""Tuning for a step: what was made of the same inputs before is taken again, the rest is tuned as one fleet per frozen model."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pipelines.batch import Made, Outcome
from pipelines.io_managers import PromptFolders
from pipelines.metadata import retuning_metadata, tuning_metadata
from prompt_core import PromptmillError

if TYPE_CHECKING:  # torch loads in the steps that need it, not with the code location
    from prompt_core import TunedPrompt
    from prompt_core.backbone import Backbone
    from prompt_core.tuning import Order, Retuned

Retune = Callable[[Sequence["Order"], "Backbone"], list["Retuned | PromptmillError"]]
_ASSET = "tuned_prompt"


class Tuner:
    """Makes the tuned prompts of one step.

    Args:
        prompts: where earlier ones are.
        retune: as `prompt_core.tuning.retune_fleet`, given orders and their backbone.
        say: takes a line for the run's log.
    """

    def __init__(self, prompts: PromptFolders, retune: Retune, say: Callable[[str], object]) -> None:
        self._prompts, self._retune, self._say = prompts, retune, say

    def tune_all(self, orders: Mapping[str, "Order | Exception"]) -> dict[str, Outcome]:
        """The prompt of each task, or what kept it from one."""
        outcomes: dict[str, Outcome] = {key: order for key, order in orders.items() if isinstance(order, Exception)}
        for fleet in _by_backbone({key: order for key, order in orders.items() if key not in outcomes}):
            try:
                outcomes |= self._tune(fleet)
            except PromptmillError as error:
                outcomes |= dict.fromkeys(fleet, error)
        return {key: outcomes[key] for key in orders}

    def _tune(self, fleet: Mapping[str, "Order"]) -> dict[str, Outcome]:
        from prompt_core.backbone import load_backbone
        from prompt_core.tuning import inputs_digest

        first = next(iter(fleet.values()))
        backbone = load_backbone(first.task.backbone, first.task.folder)
        outcomes: dict[str, Outcome] = {}
        made_of: dict[str, str] = {}
        for key, order in fleet.items():
            try:
                made_of[key] = inputs_digest(order.task, order.sides, backbone)
            except PromptmillError as error:
                outcomes[key] = error
                continue
            if (found := self._known(order, made_of[key], backbone)) is not None:
                why = "taken again: task, rows, model and versions are what they were, so nothing was tuned"
                outcomes[key] = Made(found, found.digest, tuning_metadata(found, 0.0) | {"tuning": why})
        left = [key for key in fleet if key not in outcomes]
        self._say(
            f"{len(left)} of {len(fleet)} prompts on {backbone.identity.name} are tuned, {len(fleet) - len(left)} are known or failed"
        )
        began = time.monotonic()
        results = self._retune([fleet[key] for key in left], backbone) if left else []
        seconds = time.monotonic() - began
        for key, result in zip(left, results, strict=True):
            if isinstance(result, PromptmillError):
                outcomes[key] = result
                continue
            prompt = result.prompt
            self._prompts.remember(_ASSET, made_of[key], prompt)
            metadata = tuning_metadata(prompt, seconds) | retuning_metadata(result, len(left))
            outcomes[key] = Made(prompt, prompt.digest, metadata)
        return outcomes

    def _known(self, order: "Order", made_of: str, backbone: "Backbone") -> "TunedPrompt | None":
        """The prompt that was tuned from the same inputs: by this deployment, or the live one, should the storage be new."""
        from prompt_core.tuning import is_made_of

        if (found := self._prompts.remembered(_ASSET, made_of)) is not None:
            return found
        live = order.live
        same = live is not None and is_made_of(live, order.task, order.sides, backbone.identity, backbone.device.type)
        return live if same else None


def _by_backbone(orders: Mapping[str, "Order"]) -> Iterator[dict[str, "Order"]]:
    fleets: dict[str, dict[str, Order]] = {}
    for key, order in orders.items():
        fleets.setdefault(f"{order.task.folder} {order.task.backbone.model_dump_json()}", {})[key] = order
    yield from fleets.values()
