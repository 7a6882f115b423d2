"""How transformers' attention layers reach the attention step: one registered function, one pass object per forward.

The pass travels as a keyword argument through the model's forward to every attention layer, so that nothing global
says which batch is running and gradient checkpointing recomputes with the same tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from prefix_attention import PrefixTiles, PromptForest, decode_attention, prefix_attention
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "promptmill"
_LAYER = "_promptmill_layer"


def number_layer(module: torch.nn.Module, layer: int) -> None:
    """Remember which layer an attention module is; transformers' own `layer_idx` is None or repeats in some models."""
    setattr(module, _LAYER, layer)


def layer_of(module: torch.nn.Module) -> int:
    """The layer that the probe gave this attention module."""
    layer: int = getattr(module, _LAYER)
    return layer


class AttentionPass(Protocol):
    """What the layers ask for during one forward."""

    @property
    def rows(self) -> Tensor | None:
        """The rows whose last hidden states are asked for, ascending, int64 [n]; None for all."""
        ...

    @property
    def device(self) -> torch.device:
        """Where attention runs: q, k and v of a layer that lies elsewhere come over, and its result goes back."""
        ...

    def attend(self, module: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, **scores: Any) -> Tensor:
        """Attention of the layer that `module` belongs to. q [S, Hq, D], k and v [S, Hkv, D] -> [S, Hq, D]."""
        ...


@dataclass
class ForestPass:
    """A packed row of a prompt forest.

    Attributes:
        forest: the layout, shared by all layers.
        keys, values: the external prefixes of all layers, each [L, sum(prefix_lengths), Hkv, D], or None.
        captured: given a list, every layer appends its own (k, v), each [S, Hkv, D].
        rows: see `AttentionPass`.
    """

    forest: PromptForest
    keys: Tensor | None = None
    values: Tensor | None = None
    captured: list[tuple[Tensor, Tensor]] | None = None
    rows: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """The forest's."""
        return self.forest.device

    def attend(self, module: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, **scores: Any) -> Tensor:
        """Exact attention over the forest, see `prefix_attention`."""
        if self.captured is not None:
            self.captured.append((k, v))
        if self.keys is None or self.values is None:
            return prefix_attention(q, k, v, self.forest, **scores)
        layer = layer_of(module)
        prefix_k, prefix_v = self.keys[layer].to(k.dtype), self.values[layer].to(v.dtype)
        return prefix_attention(q, k, v, self.forest, prefix_k, prefix_v, **scores)


@dataclass
class DecodePass:
    """One new token per row, against the row's own cache and the prefix that it shares with others.

    Attributes:
        cache: per layer (k, v), each [B, Hkv, capacity, D], written in place.
        lengths: tokens in each row's cache before this step, int64 [B].
        keys, values: the prefixes, each [L, G, Hkv, P, D] in the cache's dtype; P may be 0.
        tiles: which row reads which of them.
    """

    cache: list[tuple[Tensor, Tensor]]
    lengths: Tensor
    keys: Tensor
    values: Tensor
    tiles: PrefixTiles
    rows: None = field(init=False, default=None)
    _rows: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._rows = torch.arange(len(self.lengths), device=self.lengths.device)

    @property
    def device(self) -> torch.device:
        """The cache's."""
        return self.lengths.device

    @property
    def positions(self) -> Tensor:
        """Of the new tokens, int64 [B]."""
        return self.tiles.lengths + self.lengths

    def attend(self, module: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, **scores: Any) -> Tensor:
        """Append this token's key and value to the cache, then attend, see `decode_attention`."""
        layer = layer_of(module)
        cache_k, cache_v = self.cache[layer]
        cache_k[self._rows, :, self.lengths] = k
        cache_v[self._rows, :, self.lengths] = v
        return decode_attention(q, cache_k, cache_v, self.lengths + 1, self.keys[layer], self.values[layer], self.tiles, **scores)


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    prompt_pass: AttentionPass | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls. query [1, Hq, S, D], key and value [1, Hkv, S, D] -> [1, S, Hq, D]."""
    if prompt_pass is None or attention_mask is not None or query.shape[0] != 1:
        raise RuntimeError(f"{type(module).__name__} was called without its packed row: run the model through Backbone, not by itself")
    home = prompt_pass.device
    q, k, v = (states[0].transpose(0, 1).to(home) for states in (query, key, value))
    sinks = None if s_aux is None else s_aux.to(home)
    out = prompt_pass.attend(module, q, k, v, scale=scaling, window=sliding_window, softcap=softcap, sinks=sinks)
    return out.unsqueeze(0).to(query.device), None


@contextmanager
def windows_of_masks() -> Iterator[set[int | None]]:
    """Within it, the windows of the masks that models of this thread ask transformers for; None for a mask without one."""
    windows: set[int | None] = set()
    token = _asked.set(windows)
    try:
        yield windows
    finally:
        _asked.reset(token)


_asked: ContextVar[set[int | None] | None] = ContextVar("asked", default=None)


def _no_mask(*args: Any, attention_mask: Tensor | None = None, local_size: int | None = None, **kwargs: Any) -> None:
    """A packed row has no padding; transformers would drop a padding mask in silence if no function were registered."""
    if not torch.compiler.is_compiling() and (windows := _asked.get()) is not None:  # a compiler cannot read a context variable
        windows.add(local_size)
    if attention_mask is not None and not bool(attention_mask.all()):
        raise ValueError("attention_mask: a packed row has no padding; pass the tokens alone")


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, _no_mask)
