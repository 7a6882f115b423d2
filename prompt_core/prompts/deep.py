"""`DeepPrefix`: trainable keys and values in every layer (Li & Liang 2021, arXiv:2101.00190; P-tuning v2, arXiv:2110.07602)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from prefix_attention import PromptForest
from torch import Tensor, nn

from prompt_core.backbone import Backbone, ForestPass


class DeepPrefix(nn.Module):
    """P key/value pairs per layer, seen by every example; no rows of its own.

    Args:
        keys, values: where tuning starts, each [L, P, Hkv, D]; kept in float32.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys = nn.Parameter(keys.detach().float().clone())
        self.values = nn.Parameter(values.detach().float().clone())

    def forward(self, backbone: Backbone, segments: Sequence[Tensor], parents: Sequence[int] | None = None) -> list[Tensor]:
        """Hidden states of segments behind the prefix.

        Args:
            backbone: a causal model or an encoder.
            segments: token ids, each int64 [n_i], in depth-first order.
            parents: index of each segment's parent among the segments, -1 (the default) for directly behind the prefix.

        Returns:
            The segments' last hidden states, each [n_i, H].
        """
        parents = parents or [-1] * len(segments)
        lengths = [len(ids) for ids in segments]
        forest = PromptForest.from_segments(
            lengths, parents, bidirectional=not backbone.causal, prefix_lengths=[self.keys.shape[1]], prefixes=[0] * len(segments)
        ).to(backbone.device)
        # One cast for all layers: a layer then takes a view.
        keys, values = self.keys.to(backbone.dtype), self.values.to(backbone.dtype)
        hidden = backbone.hidden_states(backbone.embed(torch.cat(list(segments))), forest.position_ids, ForestPass(forest, keys, values))
        return list(torch.split(hidden, lengths))

    def tensors(self) -> dict[str, Tensor]:
        """What the artifact keeps: `keys` and `values` [L, P, Hkv, D] float32 on the CPU."""
        return {"keys": self.keys.detach().cpu(), "values": self.values.detach().cpu()}


@torch.no_grad()
def lower(backbone: Backbone, rows: Tensor) -> DeepPrefix:
    """What remains of a prompt once a causal model has read it: its keys and values in every layer.

    Sequences behind the result get the hidden states that they get behind the rows themselves, to rounding.

    Args:
        backbone: a causal model; of an encoder it gives the keys and values of the rows alone.
        rows: input embeddings of a soft or text prompt, [P, H], at least one.
    """
    captured: list[tuple[Tensor, Tensor]] = []
    forest = PromptForest.from_segments([len(rows)], [-1], bidirectional=not backbone.causal).to(backbone.device)
    backbone.hidden_states(rows.to(backbone.dtype), forest.position_ids, ForestPass(forest, captured=captured))
    return DeepPrefix(torch.stack([k for k, _ in captured]), torch.stack([v for _, v in captured]))


def no_prompt(backbone: Backbone) -> DeepPrefix:
    """A prefix of no tokens: the bare model."""
    empty = torch.empty(backbone.num_layers, 0, backbone.num_kv_heads, backbone.head_dim, device=backbone.device)
    return DeepPrefix(empty, empty)
