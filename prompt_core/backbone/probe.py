"""The probe: tiny forwards that prove an architecture uses the attention step in every layer, uses it alone, and uses it right.

Some architectures never call a registered attention function (Bloom, CodeGen, XGLM, DeBERTa-v2), and then attend to
whatever stands in the row; others count positions, mask or scale logits in a way of their own. Nothing in their output
says so; hence this test at every attach.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from prefix_attention import PromptForest
from torch import Tensor
from transformers import PreTrainedModel

from prompt_core.backbone.attention import ForestPass, number_layer, windows_of_masks
from prompt_core.errors import PromptmillError

if TYPE_CHECKING:
    from prompt_core.backbone.model import Backbone

# A parent and two children of a causal model; the same segments side by side of an encoder.
_LENGTHS, _PARENTS = (3, 4, 5), (-1, 0, 0)
_ROWS, _MIDDLE = sum(_LENGTHS), _LENGTHS[0] + _LENGTHS[1]
# Between a packed row and the same path alone. Rounding alone moves the logits of 30 layers by 7 % of their spread in
# bfloat16, by 9 % on a base in 4 bits and by 23 % in 8.
_LARGEST_DIFFERENCE = {"float32": 0.01, "bfloat16": 0.5, "float16": 0.5}
RAISED = (RuntimeError, TypeError, AttributeError, ValueError, LookupError)  # what a model that lacks something raises


@dataclass(frozen=True)
class PromptShape:
    """What a prompt for a model has to fit: its layers, their key/value heads and width, and the width of its states."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int


@dataclass
class _NumberingPass(ForestPass):
    """A forest pass that numbers the attention modules in the order in which they call, and notes what they ask for."""

    seen: list[torch.nn.Module] = field(default_factory=list)
    windows: list[int | None] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def attend(self, module: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, **scores: Any) -> Tensor:
        number_layer(module, len(self.seen))
        self.seen.append(module)
        self.windows.append(scores["window"])
        self.shapes += [tuple(k.shape[1:]), tuple(v.shape[1:])]
        return super().attend(module, q, k, v, **scores)


def refused(model: PreTrainedModel, finding: str) -> PromptmillError:
    """What to raise about an architecture that cannot be used."""
    where = f"backbone: architecture {type(model).__name__}"
    return PromptmillError(where, finding, "It cannot be tuned exactly; choose another model.")


def probe_ids(vocabulary: int, special: Collection[int]) -> Tensor:
    """Ordinary tokens for the probe's row, spread over the vocabulary, int64 [12]."""
    ordinary = sorted(set(range(vocabulary)).difference(special))
    return torch.tensor(ordinary[:: max(1, len(ordinary) // _ROWS)][:_ROWS])


@torch.no_grad()
def alone(model: PreTrainedModel, ids: Tensor, causal: bool, dtype: str) -> Tensor:
    """What a model itself, its own attention in place, makes of the row's last path: logits [8, V], or states [5, H] of an encoder.

    Raises:
        PromptmillError: it cannot run on token ids alone; or it looks ahead though `causal`, or does not though not.
    """

    def run(path: Tensor) -> Tensor:
        try:
            output: Tensor = (
                model(input_ids=path[None], use_cache=False).logits if causal else model.base_model(input_ids=path[None]).last_hidden_state
            )
        except RAISED as error:
            raise refused(model, f"does not run on token ids alone ({brief(error)})") from None
        return output[0].float()

    path = ids[_last_path(causal)]
    output, changed = run(path), path.clone()
    changed[-1] = ids[_MIDDLE - 1]
    moved = float(differences(run(changed)[:-1], output[:-1]).max())
    if causal and moved > _tolerance(dtype):
        raise refused(model, "looks ahead")
    if not causal and moved == 0:
        raise refused(model, "does not look ahead, as an encoder does")
    return output


@torch.no_grad()
def probe(backbone: Backbone, base: PreTrainedModel, ids: Tensor, expected: Tensor) -> PromptShape:
    """Run the probe's row, number the layers, and check what each token could see and what came out.

    Args:
        backbone: with the attention step in place.
        base: its model without a head.
        ids: of `probe_ids`.
        expected: of `alone`.

    Raises:
        PromptmillError: not every layer called the attention step once, or not with the window that the configuration
            or the model's mask says; a child sees its sibling; a causal model looks ahead; or the row gives something else than `expected`.
    """
    causal = backbone.causal
    forest = PromptForest.from_segments(_LENGTHS, _PARENTS if causal else (-1, -1, -1), bidirectional=not causal).to(backbone.device)

    def run(ids: Tensor) -> tuple[Tensor, _NumberingPass]:
        numbering = _NumberingPass(forest)
        try:
            states = backbone.hidden_states(backbone.embed(ids), forest.position_ids, numbering)
        except RAISED as error:
            raise refused(base, f"does not take the attention step ({brief(error)})") from None
        return states, numbering

    with windows_of_masks() as masked:
        states, numbering = run(ids)
    _check_layers(backbone, base, numbering, masked)
    _check_sight(backbone, base, states, run, ids)
    outputs = backbone.logits(states) if causal else states
    difference = float(differences(outputs[_last_path(causal)], expected).mean())
    if difference > _LARGEST_DIFFERENCE.get(backbone.identity.dtype, 1.0):
        raise refused(base, f"gives other results in a packed row than alone (they differ by {difference:.0%})")
    heads, width = numbering.shapes[0]
    return PromptShape(len(numbering.seen), heads, width, states.shape[-1])


def _check_layers(backbone: Backbone, base: PreTrainedModel, numbering: _NumberingPass, masked: set[int | None]) -> None:
    layers, calls = base.config.num_hidden_layers, len(numbering.seen)
    if calls != layers:
        raise refused(base, f"called the attention step {calls} times in {layers} layers")
    if len(set(numbering.seen)) != layers:
        raise refused(base, "shares one attention module between layers")
    if len(set(numbering.shapes)) > 1:
        raise refused(base, f"has layers of different shapes ({', '.join(map(str, sorted(set(numbering.shapes))))})")
    # Transformers masks each kind of layer in its own way; of those, a window is the one that reaches the attention step.
    kinds = getattr(base.config, "layer_types", None) or []
    for layer, (kind, window) in enumerate(zip(kinds, numbering.windows, strict=False)):
        if kind != ("full_attention" if window is None else "sliding_attention"):
            raise refused(base, f"asks for window {window} in layer {layer}, which is of kind {kind}")
    # Without kinds one mask is every layer's. The probe's row is too short to show a window that only the mask has.
    hiding, asked = (_hiding(windows, backbone.max_positions) for windows in (masked, set(numbering.windows)))
    if hiding and not kinds and hiding != asked:
        raise refused(base, f"masks with window {_named(hiding)}, but its layers ask for {_named(asked)}")


def _hiding(windows: set[int | None], positions: int) -> set[int | None]:
    """The windows, None for those that hide nothing in a row of so many positions."""
    return {None if window is None or window >= positions else window for window in windows}


def _named(windows: set[int | None]) -> str:
    return " and ".join(sorted(map(str, windows)))


def _check_sight(
    backbone: Backbone, base: PreTrainedModel, before: Tensor, run: Callable[[Tensor], tuple[Tensor, Any]], ids: Tensor
) -> None:
    changed = ids.clone()
    changed[_MIDDLE - 1] = ids[0]
    after, _ = run(changed)
    tolerance = _tolerance(backbone.identity.dtype)
    if differences(after[_MIDDLE:], before[_MIDDLE:]).max() > tolerance:
        raise refused(base, "lets an example see its neighbour in the packed row")
    if backbone.causal and differences(after[: _MIDDLE - 1], before[: _MIDDLE - 1]).max() > tolerance:
        raise refused(base, "looks ahead")
    if torch.equal(after[_MIDDLE - 1], before[_MIDDLE - 1]):
        raise refused(base, "does not react to its input")


def _tolerance(dtype: str) -> float:
    """Nothing at all should move but with experts: the shape of their products, and so their rounding, follows the whole row."""
    return 1e-3 if dtype == "float32" else 0.1


def _last_path(causal: bool) -> list[int]:
    """Rows of the last segment and of what it stands behind."""
    return [*(range(_LENGTHS[0]) if causal else ()), *range(_MIDDLE, _ROWS)]


def differences(found: Tensor, expected: Tensor) -> Tensor:
    """Per row, relative to how far its numbers are from their mean, which neither softmax nor a norm sees. [n, H] -> [n]."""
    found, expected = found.float(), expected.float()
    spread = expected - expected.mean(-1, keepdim=True)
    relative: Tensor = (found - expected).norm(dim=-1) / spread.norm(dim=-1).clamp_min(1e-30)
    return relative


def brief(error: Exception) -> str:
    """Its message as part of a line."""
    return " ".join(str(error).split())[:160]
