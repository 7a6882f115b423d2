"""Compaction: a long context's keys and values made few, so that what stands behind them attends to the same."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from prefix_attention import PromptForest
from torch import Tensor

from prompt_core.backbone import Backbone, ForestPass
from prompt_core.backbone.attention import layer_of
from prompt_core.prompts.prompt import PromptState
from prompt_core.prompts.tree import Tree, input_rows

_log = logging.getLogger("promptmill")
_ROWS = 4096  # tokens of the texts that are read
_LOOKS = 2048  # queries of a head that say which tokens of the context matter
_STEPS = 300
_QUERIES = 2048  # of a head, at most, in a step
_RATE = 0.05  # of the size of keys and of values
_RIDGE = 1e-6
_VALUE_RIDGE = 1e-3  # relative: tokens that are attended to alike share what they give


@torch.no_grad()
def compact(
    backbone: Backbone, context: PromptState, texts: Sequence[Sequence[int]], tokens: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Keys and values that stand for those of a context: attention matching (Zweiger et al. 2026, arXiv:2602.16284).

    The texts are read behind the context once, and each layer is then fitted by itself: its few keys and values are to
    give the texts' tokens the attention that all of the context's gave. No gradient passes through the model. The paper
    keeps some of the keys, adds a bias to each and solves for values; a prefix has no biases, so that the keys move too:

    1. Of a key/value head the tokens are taken that get most attention, the first always.
    2. Their keys are moved to where the short prompt puts what reads them: by least squares over the queries there,
       which needs no knowledge of how the model turns or adds positions.
    3. Keys and values follow the gradient (Adam) of the squared error of the attention's result, the share of the text's own
       tokens included; values end with least squares. The first token stays.

    Args:
        backbone: a causal model.
        context: what is read in front of the texts, lowered: keys and values alone.
        texts: token ids of what stands behind it, such as inputs with answers; 4,096 tokens of them are read, drawn text by text.
        tokens: how many remain, at most those of the context.
        generator: the random stream, on the CPU.

    Returns:
        Keys and values, each float32 [L, tokens, Hkv, D].
    """
    _log.info("compaction: %d tokens of context become %d", context.keys.shape[1], tokens)
    read = _Reading(backbone, context, _drawn(texts, generator), tokens)
    layers = [_compacted(read.layer(number), tokens, generator) for number in range(backbone.num_layers)]
    keys, values = (torch.stack(states) for states in zip(*layers, strict=True))
    return keys, values


class Compactions:
    """Compactions, each made once: the trials of a search differ in other settings than those that it depends on."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Tensor, Tensor, Tensor]] = {}

    def compact(
        self,
        backbone: Backbone,
        ids: Sequence[int],
        read: Callable[[], PromptState],
        texts: Sequence[Sequence[int]],
        tokens: int,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """As the function `compact`, of a context with these token ids that `read` gives lowered; the generator is left as by that."""
        about = [list(ids), list(map(list, texts)), tokens, generator.get_state().tolist()]
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
        if key not in self._made:
            keys, values = compact(backbone, read(), texts, tokens, generator)
            self._made[key] = keys, values, generator.get_state()
        keys, values, state = self._made[key]
        generator.set_state(state)
        return keys, values


def _drawn(texts: Sequence[Sequence[int]], generator: torch.Generator) -> list[Sequence[int]]:
    drawn: list[Sequence[int]] = []
    room = _ROWS
    for number in torch.randperm(len(texts), generator=generator).tolist():
        if drawn and len(texts[number]) > room:
            break
        drawn.append(texts[number])
        room -= len(texts[number])
    return drawn


@dataclass
class _Watched(ForestPass):
    """A pass that keeps of each layer its queries, keys and values, what they give, and the settings of its scores."""

    seen: dict[int, dict[str, Any]] = field(default_factory=dict)

    def attend(self, module: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, **scores: Any) -> Tensor:
        out = self._result(module, q, k, v, **scores)
        self.seen[layer_of(module)] = {"q": q, "k": k, "v": v, "out": out, **scores}
        return out.clone()  # a layer may add to what it gets in place

    def _result(self, module: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, **scores: Any) -> Tensor:
        return super().attend(module, q, k, v, **scores)


@dataclass
class _Moved(_Watched):
    """The same texts at other positions: every layer gets the attention that it got where they were read first."""

    before: dict[int, dict[str, Any]] = field(default_factory=dict)

    def _result(self, module: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, **scores: Any) -> Tensor:
        out: Tensor = self.before[layer_of(module)]["out"]
        return out


@dataclass(frozen=True)
class _Scores:
    """How a layer's queries and keys meet; the settings of `prefix_attention`."""

    scale: float
    window: int | None
    softcap: float | None

    def __call__(self, queries: Tensor, keys: Tensor, positions: Tensor) -> Tensor:
        """Queries [Hkv, n, D] at positions, int64 [n], and keys [Hkv, m, D] at 0, 1, ... -> [Hkv, n, m]; -inf for what none can see."""
        scores = queries @ keys.transpose(1, 2) * self.scale
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        distance = positions[:, None] - torch.arange(keys.shape[1], device=keys.device)
        unseen = distance < 0 if self.window is None else (distance < 0) | (distance >= self.window)
        return scores.masked_fill(unseen, -torch.inf)


@dataclass(frozen=True, eq=False)
class _Layer:
    """What the texts' tokens attend to in a layer, by key/value head with N queries each; float32.

    Attributes:
        scores: how queries and keys meet.
        keys, values: the context's, [Hkv, T, D].
        asked: the queries where the texts were read, [Hkv, N, D].
        queries: the same behind the short prompt.
        out: what they got in all, [Hkv, N, D].
        places: of each query in its text, int64 [N].
        own, own_out: of the text's own tokens the logarithm of their weight, [Hkv, N], and what they give, [Hkv, N, D].
    """

    scores: _Scores
    keys: Tensor
    values: Tensor
    asked: Tensor
    queries: Tensor
    out: Tensor
    places: Tensor
    own: Tensor
    own_out: Tensor

    def shares(self, queries: Tensor, keys: Tensor, at: Tensor | slice, heads: slice = slice(None)) -> Tensor:
        """Of the attention of the queries `at`, [Hkv, n, D], that of each key in front, [Hkv, P, D], and last of the text's own
        tokens: [Hkv, n, P + 1]."""
        scores = self.scores(queries, keys, keys.shape[1] + self.places[at])
        return torch.cat([scores, self.own[heads, at, None]], -1).softmax(-1)

    def result(self, keys: Tensor, values: Tensor, at: Tensor | slice) -> tuple[Tensor, Tensor]:
        """What the queries `at` get behind a prompt, [Hkv, n, D], and the shares of its tokens, [Hkv, n, P]."""
        shares = self.shares(self.queries[:, at], keys, at)
        given = shares[..., :-1]
        return given @ values + shares[..., -1:] * self.own_out[:, at], given


class _Reading:
    """The texts, read behind a context and once more at the positions behind a prompt of `tokens`.

    What every layer saw in both readings is held until `layer` is asked for it: of 4,096 tokens a few times the model's activations.
    """

    def __init__(self, backbone: Backbone, context: PromptState, texts: Sequence[Sequence[int]], tokens: int) -> None:
        self._context, self._lengths = context, [len(text) for text in texts]
        embeddings = input_rows(backbone, [Tree(PromptState.of(backbone), texts)])

        def read(attention: _Watched) -> dict[int, dict[str, Any]]:
            backbone.hidden_states(embeddings, attention.forest.position_ids, attention)
            return attention.seen

        keys, values = (states.to(backbone.dtype) for states in (context.keys, context.values))
        self._there = read(_Watched(self._forest(backbone, keys.shape[1]), keys, values))
        self._here = read(_Moved(self._forest(backbone, tokens), before=self._there))

    def _forest(self, backbone: Backbone, prompt: int) -> PromptForest:
        count = len(self._lengths)
        lengths, parents = [0, *self._lengths], [-1, *[0] * count]
        return PromptForest.from_segments(lengths, parents, prefix_lengths=[prompt], prefixes=[0] * (1 + count)).to(backbone.device)

    def layer(self, number: int) -> _Layer:
        """What is attended to there; given once."""
        there, here = self._there.pop(number), self._here.pop(number)
        heads, width = here["k"].shape[1:]
        scores = _Scores(here["scale"] or width**-0.5, here["window"], here["softcap"])

        def by_head(states: Tensor) -> Tensor:  # [S, Hq, D] -> [Hkv, S * G, D]
            return states.float().view(len(states), heads, -1, width).transpose(0, 1).flatten(1, 2)

        queries, keys, values = (by_head(here[name]) for name in ("q", "k", "v"))
        places = torch.cat([torch.arange(length) for length in self._lengths]).to(queries.device)
        places = places.repeat_interleave(queries.shape[1] // len(places))
        own, own_out = self._own(scores, queries, keys, values, places)
        if here["sinks"] is not None:  # a logit per query head that takes weight and gives nothing
            together = torch.logaddexp(own, here["sinks"].float().view(heads, 1, -1).expand(-1, sum(self._lengths), -1).flatten(1))
            own, own_out = together, own_out * (own - together).exp()[..., None]
        context_keys, context_values = (states[number].float().transpose(0, 1) for states in (self._context.keys, self._context.values))
        return _Layer(scores, context_keys, context_values, by_head(there["q"]), queries, by_head(there["out"]), places, own, own_out)

    def _own(self, scores: _Scores, queries: Tensor, keys: Tensor, values: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Attention within each text: the logarithm of its weight, [Hkv, N], and its result, [Hkv, N, D]."""
        asking = [length * (queries.shape[1] // keys.shape[1]) for length in self._lengths]
        cuts = [(queries, asking, 1), (keys, self._lengths, 1), (values, self._lengths, 1), (places, asking, 0)]
        weights, results = [], []
        for q, k, v, at in zip(*(torch.split(states, sizes, dim) for states, sizes, dim in cuts), strict=True):
            own = scores(q, k, at)
            weights.append(own.logsumexp(-1))
            results.append(own.softmax(-1) @ v)
        return torch.cat(weights, 1), torch.cat(results, 1)


def _compacted(layer: _Layer, tokens: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer, each [tokens, Hkv, D]."""
    taken = _most_attended(layer, tokens, torch.randperm(layer.queries.shape[1], generator=generator)[:_LOOKS])
    taken = taken[..., None].expand(-1, -1, layer.keys.shape[2])
    keys, values = layer.keys.gather(1, taken), layer.values.gather(1, taken)
    # For each kept token the key that gives the queries here the scores that they had there.
    keys = _least_squares(layer.queries, layer.asked @ keys.transpose(1, 2), _RIDGE).transpose(1, 2)
    if tokens > 1:
        values = _solved(layer, keys, values)
        fitted = _fitted(layer, keys, values, generator)
        fitted = (fitted[0], _solved(layer, *fitted))
        better = _error(layer, *fitted) < _error(layer, keys, values)
        keys, values = (torch.where(better[:, None, None], *states) for states in zip(fitted, (keys, values), strict=True))
    return keys.transpose(0, 1), values.transpose(0, 1)


def _most_attended(layer: _Layer, tokens: int, at: Tensor) -> Tensor:
    """The first token of the context and those with most attention (root mean square over queries), ascending: [Hkv, tokens]."""
    found = []
    for head in range(len(layer.keys)):  # one after another: of a long context these shares are large
        one = slice(head, head + 1)
        share = layer.shares(layer.asked[one, at], layer.keys[one], at, one)[0, :, :-1].square().mean(0)
        share[0] = torch.inf
        found.append(share.topk(tokens).indices.sort().values)
    return torch.stack(found)


def _solved(layer: _Layer, keys: Tensor, values: Tensor) -> Tensor:
    """The values, the first as it is, that give the attention's result best."""
    result, shares = layer.result(keys, values, slice(None))
    change = _least_squares(shares[..., 1:], layer.out - result, _VALUE_RIDGE)
    return torch.cat([values[:, :1], values[:, 1:] + change], 1)


def _fitted(layer: _Layer, keys: Tensor, values: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Keys and values after some steps along the gradient of the error of the attention's result."""
    first = (keys[:, :1], values[:, :1])
    free = [states[:, 1:].clone().requires_grad_() for states in (keys, values)]
    rates = [_RATE * states.square().mean().sqrt().item() for states in free]
    optimizer = torch.optim.Adam([{"params": [states]} for states in free], betas=(0.9, 0.99))
    size, count = layer.out.square().sum(-1).mean(1), layer.queries.shape[1]
    for step in range(_STEPS):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / _STEPS))
        at = torch.randint(count, (min(_QUERIES, count),), generator=generator).to(layer.queries.device)
        with torch.enable_grad():
            keys, values = (torch.cat(parts, 1) for parts in zip(first, free, strict=True))
            result, _ = layer.result(keys, values, at)
            loss = ((result - layer.out[:, at]).square().sum(-1).mean(1) / size).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    keys, values = (torch.cat([own, states.detach()], 1) for own, states in zip(first, free, strict=True))
    return keys, values


def _error(layer: _Layer, keys: Tensor, values: Tensor) -> Tensor:
    """Sum of squares, [Hkv]."""
    result, _ = layer.result(keys, values, slice(None))
    return (result - layer.out).square().sum((1, 2))


def _least_squares(rows: Tensor, wanted: Tensor, ridge: float) -> Tensor:
    """x of least |rows x - wanted|, with a ridge relative to the rows: [Hkv, N, n] and [Hkv, N, m] -> [Hkv, n, m], in float64."""
    turned = rows.transpose(1, 2)
    products, sides = (turned @ rows).double(), (turned @ wanted).double()
    ridges = ridge * products.diagonal(dim1=1, dim2=2).mean(-1).clamp(min=torch.finfo(torch.float32).tiny)
    eye = torch.eye(rows.shape[2], dtype=torch.float64, device=rows.device)
    solution: Tensor = torch.linalg.solve(products + ridges[:, None, None] * eye, sides)
    return solution.float()
