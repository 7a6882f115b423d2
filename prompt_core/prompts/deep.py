"""`DeepPrefix`: trainable keys and values in every layer (Li & Liang 2021, arXiv:2101.00190; P-tuning v2, arXiv:2110.07602)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prompt_core.backbone import Backbone
from prompt_core.prompts.prompt import Prompt, PromptState


class DeepPrefix(Prompt):
    """P key/value pairs per layer in front of every example.

    Args:
        backbone: any; of an encoder-decoder it is the encoder that sees the prefix.
        keys, values: where tuning starts, each [L, P, Hkv, D]; kept in float32.
        embeddings: where soft tokens inside the examples start, [R, H]; None where the template has none.
        sink: whether the first pair stays as it starts: models lean on their first token, whatever it says (Xiao et al.
            2024, arXiv:2309.17453), and a prefix that moves it loses that (Eyuboglu et al. 2025, arXiv:2506.06266).
    """

    def __init__(self, backbone: Backbone, keys: Tensor, values: Tensor, embeddings: Tensor | None = None, sink: bool = False) -> None:
        super().__init__()
        keys, values = (states.detach().float() for states in (keys, values))
        self.frozen_tokens = int(sink)
        self._backbone, self._sink = backbone, [states[:, : self.frozen_tokens].clone() for states in (keys, values)]
        self.keys, self.values = (nn.Parameter(states[:, self.frozen_tokens :].clone()) for states in (keys, values))
        self.embeddings = None if embeddings is None else nn.Parameter(embeddings.detach().float().clone())

    def units(self) -> dict[nn.Parameter, Tensor]:
        """A layer's learning rate follows the size of its keys and values, relative to the median layer's.

        In SmolLM2-135M values are about .05 in the first layer and 1.9 in the 25th: one rate for all would
        overwrite the ones and hardly move the others.
        """
        return {parameter: _relative_sizes(parameter) for parameter in (self.keys, self.values)}

    def state(self) -> PromptState:
        keys, values = (torch.cat(parts, dim=1) for parts in zip(self._sink, (self.keys, self.values), strict=True))
        return PromptState.of(self._backbone, rows=self.embeddings, keys=keys, values=values)


def _relative_sizes(states: Tensor) -> Tensor:
    """Root mean square of each layer's states [L, P, Hkv, D] by the median layer's, [L, 1, 1, 1]; ones where a layer has none."""
    sizes = states.detach().square().flatten(1).mean(1).sqrt()[:, None, None, None]
    # At a start of zeros, or without a state to tune, nothing says how large they will be.
    return sizes / sizes.median() if (sizes > 0).all() else torch.ones_like(sizes)
