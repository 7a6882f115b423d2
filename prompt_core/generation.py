"""Generation behind a prompt: the inputs at once, then one token per row and step, the most likely one or one drawn by seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from prompt_core.backbone import Backbone, DecodePass, EncoderDecoder
from prompt_core.prompts import PromptState, Tree, encoder_states, hidden_states, lower

_ROWS = 96
_HEAD = 1024  # tokens that nearly always hold what is drawn from
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. A row's draws depend on its seed alone, not on what is generated beside it.

    Attributes:
        seeds: one per input.
        temperature: above 0; the logits are divided by it.
        top_p: draw from the likeliest tokens that hold this share of the probability together (Holtzman et al. 2020,
            arXiv:1904.09751).
    """

    seeds: Sequence[int]
    temperature: float = 1.0
    top_p: float = 1.0

    def uniforms(self, rows: Sequence[int], steps: int) -> Tensor:
        """The numbers in [0, 1) that the rows' tokens are drawn with, float64 [rows, steps]."""
        drawn = [torch.rand(steps, generator=torch.Generator().manual_seed(self.seeds[i]), dtype=torch.float64) for i in rows]
        return torch.stack(drawn)

    def draw(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Token ids [B] of logits [B, V], each where its number falls among the chances in the order of the vocabulary.

        In that order rounding, which differs with what stands beside a row, moves a boundary by as much as a chance; in
        the order of the chances it would exchange tokens.
        """
        chances = (logits.float() / self.temperature).softmax(-1)
        if self.top_p < 1:
            chances = chances.where(chances >= self._least(chances), 0.0)
        upto = chances.double().cumsum(-1)
        place = torch.searchsorted(upto, uniforms[:, None].to(upto.device) * upto[:, -1:], right=True)
        return place.clamp(max=chances.shape[-1] - 1)[:, 0]

    def _least(self, chances: Tensor) -> Tensor:
        """The smallest chance that is drawn from, [B, 1]."""
        likely = chances.topk(min(_HEAD, chances.shape[-1]), dim=-1).values
        if bool((likely.double().sum(-1) < self.top_p).any()):
            likely = chances.sort(dim=-1, descending=True).values
        upto = likely.double().cumsum(-1)
        return likely.gather(1, (upto - likely < self.top_p).sum(-1, keepdim=True) - 1)


@torch.inference_mode()
def generate(
    backbone: Backbone,
    prompt: PromptState,
    inputs: Sequence[Sequence[int]],
    max_new_tokens: int,
    end: Sequence[int],
    on_progress: OnProgress | None = None,
    sampling: Sampling | None = None,
) -> list[list[int]]:
    """The most likely continuation of each input behind a prompt, token by token; with an encoder-decoder, what it writes of it.

    Args:
        backbone: a model that generates.
        prompt: a causal model reads its root once and holds its keys and values once for all rows; an encoder-decoder
            reads it with every input.
        inputs: token ids after the root, each at least one.
        max_new_tokens: where a text ends at the latest.
        end: token ids that end a text; not part of the result.
        on_progress: called with (finished, all).
        sampling: draw the tokens instead.

    Returns:
        Generated ids per input, in the order of `inputs`.
    """
    results: list[list[int]] = [[] for _ in inputs]
    order = sorted(range(len(inputs)), key=lambda i: len(inputs[i]))  # rows of like length waste little cache
    if isinstance(backbone, EncoderDecoder):
        max_new_tokens = min(max_new_tokens, backbone.max_positions)  # of a decoder that counts from 0
    else:
        prompt = lower(backbone, prompt)
    done = 0
    for start in range(0, len(order), _ROWS):
        rows = order[start : start + _ROWS]
        given = [inputs[i] for i in rows]
        decoding = (
            _DecoderRows(backbone, prompt, given)
            if isinstance(backbone, EncoderDecoder)
            else _PackedRows(backbone, prompt, given, max_new_tokens)
        )
        uniforms = sampling.uniforms(rows, max_new_tokens) if sampling else None
        for row, ids in zip(rows, _generate_rows(backbone, decoding, len(rows), max_new_tokens, end, sampling, uniforms), strict=True):
            results[row] = ids
        done += len(rows)
        if on_progress:
            on_progress(done, len(order))
    return results


class _Rows(Protocol):
    """Texts that are being written side by side.

    Attributes:
        last: the hidden states that predict their next tokens, [B, H].
    """

    last: Tensor

    def keep(self, kept: Tensor) -> None:
        """Leave only the rows with these numbers, int64 [n]."""
        ...

    def feed(self, tokens: Tensor) -> None:
        """Append a token to each row, int64 [B]."""
        ...


def _generate_rows(
    backbone: Backbone,
    rows: _Rows,
    count: int,
    max_new_tokens: int,
    end: Sequence[int],
    sampling: Sampling | None,
    uniforms: Tensor | None,
) -> list[list[int]]:
    results: list[list[int]] = [[] for _ in range(count)]
    alive = list(range(count))
    for step in range(max_new_tokens):
        logits = backbone.logits(rows.last)
        tokens = logits.argmax(-1) if sampling is None or uniforms is None else sampling.draw(logits, uniforms[alive, step])
        going = []
        for slot, token in enumerate(tokens.tolist()):
            if token not in end:
                results[alive[slot]].append(token)
                going.append(slot)
        if not going or step + 1 == max_new_tokens:
            break
        if len(going) < len(alive):  # finished rows leave, so that the rest does not pay for them
            kept = torch.tensor(going, device=backbone.device)
            alive, tokens = [alive[slot] for slot in going], tokens[kept]
            rows.keep(kept)
        rows.feed(tokens)
    return results


class _PackedRows:
    """Continuations of inputs behind one prompt, whose keys and values all rows share."""

    def __init__(self, backbone: Backbone, prompt: PromptState, inputs: Sequence[Sequence[int]], max_new_tokens: int) -> None:
        self._backbone = backbone
        self._keys, self._values = prompt.keys.to(backbone.dtype), prompt.values.to(backbone.dtype)
        self._lengths = torch.tensor([len(ids) for ids in inputs], device=backbone.device)
        self.last, self._cache = _prefill(backbone, prompt, inputs, int(self._lengths.max()) + max_new_tokens)

    def keep(self, kept: Tensor) -> None:
        self._lengths = self._lengths[kept]
        self._cache = [(k[kept], v[kept]) for k, v in self._cache]

    def feed(self, tokens: Tensor) -> None:
        decode = DecodePass(self._cache, self._lengths, self._keys, self._values)
        positions = self._keys.shape[1] + self._lengths
        self.last = self._backbone.hidden_states(self._backbone.embed(tokens), positions, decode)
        self._lengths = self._lengths + 1


class _DecoderRows:
    """What a decoder writes of inputs that its encoder read behind one prompt."""

    def __init__(self, backbone: EncoderDecoder, prompt: PromptState, inputs: Sequence[Sequence[int]]) -> None:
        self._backbone = backbone
        self._states, self._mask = encoder_states(backbone, prompt, inputs)
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.feed(torch.full((len(inputs),), backbone.decoder_start, device=backbone.device))

    def keep(self, kept: Tensor) -> None:
        self._states, self._mask = self._states[kept], self._mask[kept]
        self._cache.batch_select_indices(kept)

    def feed(self, tokens: Tensor) -> None:
        self.last = self._backbone.decode(tokens[:, None], self._states, self._mask, self._cache)[:, 0]


def _prefill(
    backbone: Backbone, prompt: PromptState, inputs: Sequence[Sequence[int]], capacity: int
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Run the inputs as one packed row; their last hidden states [B, H] and per layer caches [B, Hkv, capacity, D]."""
    device = backbone.device
    captured: list[tuple[Tensor, Tensor]] = []
    ends = list(accumulate(map(len, inputs)))
    (last,) = hidden_states(backbone, [Tree(prompt, inputs, rows=[end - 1 for end in ends])], captured)
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
    return last, cache
