"""One packed row of many prompts and what stands behind each: every prompt's tokens and keys are in it once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain

import torch
import torch.nn.functional as F
from prefix_attention import PromptForest
from torch import Tensor

from prompt_core.backbone import Backbone, ForestPass
from prompt_core.prompts.prompt import PromptState


@dataclass(frozen=True, eq=False)
class Tree:
    """Segments behind one prompt.

    Attributes:
        prompt: what stands in front.
        segments: token ids of each segment in depth-first order; -1 - j is the prompt's soft token j.
        parents: index of each segment's parent among the segments, -1 (the default) for directly behind the prompt.
    """

    prompt: PromptState
    segments: Sequence[Sequence[int]]
    parents: Sequence[int] | None = None


def hidden_states(backbone: Backbone, trees: Sequence[Tree], captured: list[tuple[Tensor, Tensor]] | None = None) -> list[Tensor]:
    """Last hidden states of each tree's segments in order, each [tokens, H], as if every path were a sequence of its own.

    The prompts may differ in kind and length. The pass costs as many rows as there are tokens in roots and segments.

    Args:
        backbone: a causal model or an encoder.
        trees: at least one token in all.
        captured: given a list, every layer appends the (k, v) of all tokens, roots included, each [S, Hkv, D].
    """
    lengths: list[int] = []
    parents: list[int] = []
    for tree in trees:
        root = len(lengths)
        first = root + 1
        lengths += [len(tree.prompt.root), *map(len, tree.segments)]
        parents += [-1, *(root if p < 0 else first + p for p in tree.parents or [-1] * len(tree.segments))]
    prompts = [tree.prompt for tree in trees]
    forest = PromptForest.from_segments(
        lengths,
        parents,
        bidirectional=not backbone.causal,
        prefix_lengths=[prompt.keys.shape[1] for prompt in prompts],
        prefixes=[number for number, tree in enumerate(trees) for _ in range(1 + len(tree.segments))],
    ).to(backbone.device)
    # One cast for all layers: a layer then takes a view.
    keys, values = (torch.cat(parts, dim=1).to(backbone.dtype) for parts in ([p.keys for p in prompts], [p.values for p in prompts]))
    hidden = backbone.hidden_states(_input_rows(backbone, trees), forest.position_ids, ForestPass(forest, keys, values, captured))
    blocks = [size for tree in trees for size in (len(tree.prompt.root), sum(map(len, tree.segments)))]
    return list(torch.split(hidden, blocks)[1::2])


@torch.no_grad()
def lower(backbone: Backbone, prompt: PromptState) -> PromptState:
    """The same prompt with its root read: what remains of that is keys and values in every layer.

    Examples behind the result get the hidden states that they get behind the prompt itself, to rounding, if the model
    is causal. Of an encoder these are the keys and values of the root alone.
    """
    if not prompt.root:
        return prompt
    captured: list[tuple[Tensor, Tensor]] = []
    hidden_states(backbone, [Tree(prompt, [])], captured)
    keys, values = (torch.stack(states).float() for states in zip(*captured, strict=True))
    return replace(prompt, root=(), keys=torch.cat([prompt.keys, keys], dim=1), values=torch.cat([prompt.values, values], dim=1))


def _input_rows(backbone: Backbone, trees: Sequence[Tree]) -> Tensor:
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
