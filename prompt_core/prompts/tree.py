"""`Tree`: what stands behind one prompt, and the input embeddings of many such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import torch
import torch.nn.functional as F
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.prompts.prompt import PromptState


@dataclass(frozen=True, eq=False)
class Tree:
    """Segments behind one prompt.

    Attributes:
        prompt: what stands in front.
        segments: token ids of each segment in depth-first order; -1 - j is the prompt's soft token j.
        parents: index of each segment's parent among the segments, -1 (the default) for directly behind the prompt. On an
            encoder-decoder these are its encoder's, and each may be the parent of one that its decoder reads.
        rows: which of the segments' tokens, counted through, somebody wants the last hidden states of, ascending; None for all.
    """

    prompt: PromptState
    segments: Sequence[Sequence[int]]
    parents: Sequence[int] | None = None
    rows: Sequence[int] | None = None


def input_rows(backbone: Backbone, trees: Sequence[Tree]) -> Tensor:
    """Input embeddings [S, H] of all roots and segments."""
    offsets = accumulate((len(tree.prompt.rows) for tree in trees), initial=0)  # soft tokens are numbered through
    ids = torch.tensor(
        [
            token if token >= 0 else token - offset
            for tree, offset in zip(trees, offsets, strict=False)
            for token in chain(tree.prompt.root, *tree.segments)
        ],
        device=backbone.device,
    )
    rows = backbone.embed(ids.clamp(min=0))
    places = (ids < 0).nonzero().flatten()
    if not len(places):
        return rows
    # F.embedding rather than indexing: its gradient sums repeated rows in a fixed order on a GPU too.
    soft = F.embedding(-1 - ids[places], torch.cat([tree.prompt.rows for tree in trees if len(tree.prompt.rows)]).to(rows.dtype))
    return rows.index_copy(0, places, soft)
