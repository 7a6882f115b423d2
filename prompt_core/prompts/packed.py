"""One packed row of many prompts and what stands behind each: every prompt's tokens and keys are in it once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from prefix_attention import PromptForest
from torch import Tensor

from prompt_core.backbone import Backbone, EncoderDecoder, ForestPass
from prompt_core.prompts.padded import padded_states
from prompt_core.prompts.prompt import PromptState
from prompt_core.prompts.tree import Tree, input_rows


def hidden_states(backbone: Backbone, trees: Sequence[Tree], captured: list[tuple[Tensor, Tensor]] | None = None) -> list[Tensor]:
    """Last hidden states of each tree's segments in order, each [tokens, H], as if every path were a sequence of its own.

    A tree that names `rows` gets those alone, which saves all others the rest of the last layer.

    The prompts may differ in kind and length. The pass costs as many rows as there are tokens in roots and segments; on
    an encoder-decoder it is `padded_states`.

    Args:
        backbone: any.
        trees: at least one token in all.
        captured: given a list, every layer appends the (k, v) of all tokens, roots included, each [S, Hkv, D].
    """
    if isinstance(backbone, EncoderDecoder):
        return padded_states(backbone, trees, captured)
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
    wanted = _wanted(trees)
    rows = torch.tensor([row for own in wanted for row in own], dtype=torch.int64, device=backbone.device)
    forest_pass = ForestPass(forest, keys, values, captured, rows)
    hidden = backbone.hidden_states(input_rows(backbone, trees), forest.position_ids, forest_pass)
    return list(torch.split(hidden, [len(own) for own in wanted]))


def _wanted(trees: Sequence[Tree]) -> list[Sequence[int]]:
    """The rows of the packed row that each tree wants."""
    wanted: list[Sequence[int]] = []
    end = 0
    for tree in trees:
        first = end + len(tree.prompt.root)
        end = first + sum(map(len, tree.segments))
        wanted.append(range(first, end) if tree.rows is None else [first + row for row in tree.rows])
    return wanted


@torch.no_grad()
def lower(backbone: Backbone, prompt: PromptState) -> PromptState:
    """The same prompt with its root read: what remains of that is keys and values in every layer.

    Examples behind the result get the hidden states that they get behind the prompt itself, to rounding, if the model
    is causal. Of an encoder, an encoder-decoder's too, these are the keys and values of the root alone: a start, not the same.
    """
    if not prompt.root:
        return prompt
    captured: list[tuple[Tensor, Tensor]] = []
    hidden_states(backbone, [Tree(prompt, [])], captured)
    keys, values = (torch.stack(states).float() for states in zip(*captured, strict=True))
    return replace(prompt, root=(), keys=torch.cat([prompt.keys, keys], dim=1), values=torch.cat([prompt.values, values], dim=1))
