"""`SoftPrompt`: trainable rows at the input of layer 0 (Lester et al. 2021, arXiv:2104.08691)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from prefix_attention import PromptForest
from torch import Tensor, nn

from prompt_core.backbone import Backbone, ForestPass


class SoftPrompt(nn.Module):
    """P input embeddings that every example of a causal model stands behind.

    Args:
        embeddings: where tuning starts, [P, H]; kept in float32.
    """

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(embeddings.detach().float().clone())

    def forward(self, backbone: Backbone, segments: Sequence[Tensor], parents: Sequence[int] | None = None) -> list[Tensor]:
        """Hidden states of segments behind the prompt, which is the root segment: its rows are computed once.

        Args:
            backbone: a causal model.
            segments: token ids, each int64 [n_i], in depth-first order.
            parents: index of each segment's parent among the segments, -1 (the default) for directly behind the prompt.

        Returns:
            The segments' last hidden states, each [n_i, H].
        """
        parents = parents or [-1] * len(segments)
        lengths = [len(self.embeddings), *(len(ids) for ids in segments)]
        forest = PromptForest.from_segments(lengths, [-1, *(parent + 1 for parent in parents)]).to(backbone.device)
        rows = torch.cat([self.embeddings.to(backbone.dtype), backbone.embed(torch.cat(list(segments)))])
        hidden = backbone.hidden_states(rows, forest.position_ids, ForestPass(forest))
        return list(torch.split(hidden, lengths))[1:]

    def tensors(self) -> dict[str, Tensor]:
        """What the artifact keeps: `embeddings` [P, H] float32 on the CPU."""
        return {"embeddings": self.embeddings.detach().cpu()}
