"""The prompts of an encoder-decoder: every input in a padded row of its own, its prompt in front of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from prompt_core.backbone import EncoderDecoder, PaddedPass
from prompt_core.errors import PromptmillError
from prompt_core.prompts.prompt import PromptState
from prompt_core.prompts.tree import Tree, input_rows

_PADDING = 2  # a pass holds at most so many times the tokens that are real


@dataclass(frozen=True, eq=False)
class _Row:
    """What the encoder and the decoder read of one example.

    Attributes:
        owner: number of its tree.
        source: input embeddings of root and input, [n, H].
        target: the decoder's tokens; empty where there are none.
    """

    owner: int
    source: Tensor
    target: Sequence[int]


def padded_states(backbone: EncoderDecoder, trees: Sequence[Tree], captured: list[tuple[Tensor, Tensor]] | None = None) -> list[Tensor]:
    """Last hidden states of each tree's segments in order, each [tokens, H]: the encoder's of an input, the decoder's of its child.

    Exact, but without a packed row's savings: each example computes its prompt anew. Examples of very different length
    run in passes of their own, so that padding at most doubles the work.

    Args:
        backbone: an encoder-decoder.
        trees: at least one token in all; an input has no child or one, which has none. A tree without segments is its root.
        captured: given a list, every layer of the encoder appends the (k, v) of all tokens, roots included, each [tokens, H, D].

    Raises:
        PromptmillError: an input or what is written has more tokens than the model has positions.
    """
    sources = [_sources(tree) for tree in trees]
    rows = _rows(backbone, trees, sources)
    prefixes = _prefixes(backbone, [tree.prompt for tree in trees])
    encoded: list[Tensor] = [row.source for row in rows]
    decoded: list[Tensor] = [row.source[:0] for row in rows]
    # One pass where something else takes what it leaves behind, in order.
    for group in _groups(rows) if captured is None else [list(range(len(rows)))]:
        taken = [rows[number] for number in group]
        states, mask = _encode(backbone, taken, prefixes, captured)
        longest = max(len(row.target) for row in taken)
        _check_fits(backbone, longest, "a target")
        if longest:
            targets = [torch.tensor(row.target, dtype=torch.long, device=backbone.device) for row in taken]
            written = backbone.decode(pad_sequence(targets, batch_first=True), states, mask)
            for number, row, part in zip(group, taken, written, strict=True):
                decoded[number] = part[: len(row.target)]
        for number, row, part in zip(group, taken, states, strict=True):
            encoded[number] = part[len(trees[row.owner].prompt.root) : len(row.source)]
    results, first = [], 0
    for tree, own in zip(trees, sources, strict=True):
        place = {segment: first + number for number, segment in enumerate(own)}
        parts = [encoded[place[i]] if parent < 0 else decoded[place[parent]] for i, parent in enumerate(_parents(tree))]
        states = torch.cat(parts) if parts else encoded[first]
        results.append(states if tree.rows is None else states[torch.tensor(tree.rows, device=states.device)])
        first += len(own) or 1
    return results


def encoder_states(backbone: EncoderDecoder, prompt: PromptState, inputs: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """What a decoder attends to for each input behind a prompt: states [B, S, H] and which are real, bool [B, S].

    Raises:
        PromptmillError: as `padded_states`.
    """
    tree = Tree(prompt, inputs)
    return _encode(backbone, _rows(backbone, [tree], [_sources(tree)]), _prefixes(backbone, [prompt]))


def _parents(tree: Tree) -> Sequence[int]:
    return tree.parents or [-1] * len(tree.segments)


def _sources(tree: Tree) -> list[int]:
    """Which segments the encoder reads."""
    parents = _parents(tree)
    sources = [i for i, parent in enumerate(parents) if parent < 0]
    children = [parent for parent in parents if parent >= 0]
    if len(set(children)) < len(children) or not set(children) <= set(sources):
        raise ValueError("behind an encoder's input stand the tokens that its decoder reads, once, and nothing else")
    return sources


def _rows(backbone: EncoderDecoder, trees: Sequence[Tree], sources: Sequence[Sequence[int]]) -> list[_Row]:
    """The rows of all trees in order; of one without segments, its root."""
    read = [Tree(tree.prompt, [tree.segments[i] for i in own]) for tree, own in zip(trees, sources, strict=True)]
    lengths = [len(ids) for tree in read for ids in (tree.prompt.root, *tree.segments)]
    embedded = iter(torch.split(input_rows(backbone, read), lengths))
    rows = []
    for owner, (tree, own) in enumerate(zip(trees, sources, strict=True)):
        root = next(embedded)
        target = {parent: tree.segments[i] for i, parent in enumerate(_parents(tree)) if parent >= 0}
        rows += [_Row(owner, torch.cat([root, next(embedded)]), target.get(i, ())) for i in own] or [_Row(owner, root, ())]
    return rows


def _groups(rows: Sequence[_Row]) -> list[list[int]]:
    """Numbers of rows that run together, by length, so that padding stays within its bound."""
    groups: list[list[int]] = []
    tokens = width = 0
    for number in sorted(range(len(rows)), key=lambda i: -len(rows[i].source)):
        row = rows[number]
        own, longest = len(row.source) + len(row.target), max(len(row.target), width)
        if groups and (len(groups[-1]) + 1) * (len(rows[groups[-1][0]].source) + longest) <= _PADDING * (tokens + own):
            groups[-1].append(number)
            tokens, width = tokens + own, longest
        else:
            groups.append([number])
            tokens, width = own, len(row.target)
    return groups


def _prefixes(backbone: EncoderDecoder, prompts: Sequence[PromptState]) -> tuple[Tensor, Tensor, Tensor]:
    """Keys and values of all prompts, padded, each [L, T, P, H, D], and the tokens of each."""
    lengths = [prompt.keys.shape[1] for prompt in prompts]
    keys, values = (
        torch.stack([F.pad(part, (0, 0, 0, 0, 0, max(lengths) - part.shape[1])) for part in parts], 1).to(backbone.dtype)
        for parts in ([prompt.keys for prompt in prompts], [prompt.values for prompt in prompts])
    )
    return keys, values, torch.tensor(lengths, device=backbone.device)


def _encode(
    backbone: EncoderDecoder,
    rows: Sequence[_Row],
    prefixes: tuple[Tensor, Tensor, Tensor],
    captured: list[tuple[Tensor, Tensor]] | None = None,
) -> tuple[Tensor, Tensor]:
    """States [B, S, H] of the rows in one pass, and which are real, bool [B, S]."""
    longest = max(len(row.source) for row in rows)
    _check_fits(backbone, longest, "an input behind its prompt")
    lengths = torch.tensor([len(row.source) for row in rows], device=backbone.device)
    owners = torch.tensor([row.owner for row in rows], device=backbone.device)
    mask = torch.arange(longest, device=backbone.device) < lengths[:, None]
    states = backbone.encode(pad_sequence([row.source for row in rows], batch_first=True), PaddedPass(*prefixes, owners, mask, captured))
    return states, mask


def _check_fits(backbone: EncoderDecoder, tokens: int, what: str) -> None:
    if tokens > backbone.max_positions:
        found = f"{what} has {tokens} tokens, the model {backbone.max_positions} positions"
        raise PromptmillError(f"backbone: {backbone.identity.name}", found, "Lower prompt.tokens or tune.max_tokens.")
