"""The probe: a tiny forward that proves an architecture uses the attention step in every layer, and uses it alone.

Some architectures never call a registered attention function (Bloom, CodeGen, XGLM, DeBERTa-v2), and then attend to
whatever stands in the row. Nothing in their output says so; hence this test at every attach.
"""

from __future__ import annotations

from typing import Any

import torch
from prefix_attention import PromptForest
from torch import Tensor
from transformers import PreTrainedModel

from prompt_core.backbone.attention import ForestPass, number_layer
from prompt_core.errors import PromptmillError

_LENGTHS, _PARENTS = (3, 4, 5), (-1, 0, 0)


class _NumberingPass(ForestPass):
    """A forest pass that numbers the attention modules in the order in which they call."""

    def __init__(self, forest: PromptForest) -> None:
        super().__init__(forest)
        self.seen: list[torch.nn.Module] = []

    def attend(self, module: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, **scores: Any) -> Tensor:
        number_layer(module, len(self.seen))
        self.seen.append(module)
        return super().attend(module, q, k, v, **scores)


@torch.no_grad()
def probe(base: PreTrainedModel, causal: bool, position_offset: int) -> None:
    """Run a parent with two children, number the layers, and check what each token could see.

    Raises:
        PromptmillError: not every layer called the attention step, a child sees its sibling, or a causal model looks ahead.
    """
    architecture = type(base).__name__
    where = f"backbone: architecture {architecture}"
    advice = "It cannot be tuned exactly; choose another model."
    layers = base.config.num_hidden_layers
    device = base.get_input_embeddings().weight.device
    parents = _PARENTS if causal else (-1, -1, -1)
    forest = PromptForest.from_segments(_LENGTHS, parents, bidirectional=not causal).to(device)
    vocabulary = int(base.get_input_embeddings().weight.shape[0])
    ids = torch.arange(7, 7 + forest.num_tokens, device=device) % vocabulary

    def run(ids: Tensor) -> Tensor:
        numbering = _NumberingPass(forest)
        try:
            output = base(
                input_ids=ids[None], position_ids=forest.position_ids[None] + position_offset, use_cache=False, prompt_pass=numbering
            ).last_hidden_state[0]
        except (RuntimeError, TypeError, AttributeError, ValueError) as error:
            reason = " ".join(str(error).split())[:160]
            raise PromptmillError(where, f"does not take the attention step ({reason})", advice) from None
        if len(numbering.seen) != layers:
            raise PromptmillError(where, f"called the attention step {len(numbering.seen)} times in {layers} layers", advice)
        if len(set(numbering.seen)) != layers:
            raise PromptmillError(where, "shares one attention module between layers", advice)
        states: Tensor = output.float()
        return states

    before = run(ids)
    middle = _LENGTHS[0] + _LENGTHS[1]
    changed = ids.clone()
    changed[middle - 1] = (changed[middle - 1] + 1) % vocabulary
    after = run(changed)
    if not torch.allclose(before[middle:], after[middle:], atol=1e-3):
        raise PromptmillError(where, "lets an example see its neighbour in the packed row", advice)
    if causal and not torch.allclose(before[: middle - 1], after[: middle - 1], atol=1e-3):
        raise PromptmillError(where, "looks ahead", advice)
    if torch.equal(before[middle - 1], after[middle - 1]):
        raise PromptmillError(where, "does not react to its input", advice)
