"""Greedy generation from a prompt's keys and values: one packed prefill, then one token per row and step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prompt_core.backbone import Backbone, DecodePass
from prompt_core.prompts import PromptState, Tree, hidden_states, lower

_ROWS = 96
OnProgress = Callable[[int, int], None]


@torch.inference_mode()
def generate(
    backbone: Backbone,
    prompt: PromptState,
    inputs: Sequence[Sequence[int]],
    max_new_tokens: int,
    end: Sequence[int],
    on_progress: OnProgress | None = None,
) -> list[list[int]]:
    """The most likely continuation of each input behind a prompt, token by token.

    Args:
        backbone: a causal model.
        prompt: its root is read once, its keys and values are held once for all rows.
        inputs: token ids after the root, each at least one.
        max_new_tokens: where a text ends at the latest.
        end: token ids that end a text; not part of the result.
        on_progress: called with (finished, all).

    Returns:
        Generated ids per input, in the order of `inputs`.
    """
    results: list[list[int]] = [[] for _ in inputs]
    order = sorted(range(len(inputs)), key=lambda i: len(inputs[i]))  # rows of like length waste little cache
    prompt = lower(backbone, prompt)
    done = 0
    for start in range(0, len(order), _ROWS):
        rows = order[start : start + _ROWS]
        for row, ids in zip(rows, _generate_rows(backbone, prompt, [inputs[i] for i in rows], max_new_tokens, end), strict=True):
            results[row] = ids
        done += len(rows)
        if on_progress:
            on_progress(done, len(order))
    return results


def _generate_rows(
    backbone: Backbone, prompt: PromptState, inputs: Sequence[Sequence[int]], max_new_tokens: int, end: Sequence[int]
) -> list[list[int]]:
    device, prefix_tokens = backbone.device, prompt.keys.shape[1]
    keys, values = prompt.keys.to(backbone.dtype), prompt.values.to(backbone.dtype)
    lengths = torch.tensor([len(ids) for ids in inputs], device=device)
    last, cache = _prefill(backbone, prompt, inputs, int(lengths.max()) + max_new_tokens)
    results: list[list[int]] = [[] for _ in inputs]
    alive = list(range(len(inputs)))
    for step in range(max_new_tokens):
        tokens = backbone.logits(last).argmax(-1)
        going = []
        for slot, token in enumerate(tokens.tolist()):
            if token not in end:
                results[alive[slot]].append(token)
                going.append(slot)
        if not going or step + 1 == max_new_tokens:
            break
        if len(going) < len(alive):  # finished rows leave, so that the rest does not pay for them
            kept = torch.tensor(going, device=device)
            alive, tokens, lengths = [alive[slot] for slot in going], tokens[kept], lengths[kept]
            cache = [(k[kept], v[kept]) for k, v in cache]
        decode = DecodePass(cache, lengths, keys, values)
        last = backbone.hidden_states(backbone.embed(tokens), prefix_tokens + lengths, decode)
        lengths = lengths + 1
    return results


def _prefill(
    backbone: Backbone, prompt: PromptState, inputs: Sequence[Sequence[int]], capacity: int
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Run the inputs as one packed row; their last hidden states [B, H] and per layer caches [B, Hkv, capacity, D]."""
    device = backbone.device
    captured: list[tuple[Tensor, Tensor]] = []
    (hidden,) = hidden_states(backbone, [Tree(prompt, inputs)], captured)
    sizes = torch.tensor([len(ids) for ids in inputs], device=device)
    row = torch.repeat_interleave(torch.arange(len(inputs), device=device), sizes)
    column = torch.arange(len(row), device=device) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    cache = []
    for layer in captured:
        padded = []
        for states in layer:
            room = states.new_zeros(len(inputs), states.shape[1], capacity, states.shape[2])
            room[row, :, column] = states
            padded.append(room)
        cache.append((padded[0], padded[1]))
    return hidden[sizes.cumsum(0) - 1], cache
