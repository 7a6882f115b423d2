"""One decoding step of many rows behind the prefixes that they share. Inference only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PrefixTiles:
    """Which rows read which prefix, as tiles of rows that read one: planned once, used by every step and layer until rows change.

    A tile has at most as many rows as a prefix has on average, so that at most half of all places stay empty but one for
    each prefix, however uneven the prefixes are used.

    Attributes:
        lengths: tokens of each row's prefix, int64 [B].
        owners: the prefix of each tile, int64 [T]; None where that is its own number.
        rows: the row at each place, int64 [T, R]; an empty place repeats row 0.
        places: the place of each row, int64 [B], counted through the tiles.
        longest: tokens of the longest prefix that a row reads.
    """

    lengths: Tensor
    owners: Tensor | None
    rows: Tensor
    places: Tensor
    longest: int

    @classmethod
    def of(cls, prefixes: Sequence[int], lengths: Sequence[int], device: torch.device | str | None = None) -> PrefixTiles:
        """The plan for rows with these prefixes, whose lengths in tokens are `lengths`."""
        members: dict[int, list[int]] = {}
        for row, prefix in enumerate(prefixes):
            members.setdefault(prefix, []).append(row)
        size = max(1, -(-len(prefixes) // max(1, len(members))))
        tiles = [(prefix, own[i : i + size]) for prefix, own in sorted(members.items()) for i in range(0, len(own), size)]
        places = [0] * len(prefixes)
        for number, (_, own) in enumerate(tiles):
            for i, row in enumerate(own):
                places[row] = number * size + i
        owners = [prefix for prefix, _ in tiles]
        own_lengths = [lengths[prefix] for prefix in prefixes]
        return cls(
            torch.tensor(own_lengths, dtype=torch.int64, device=device),
            None if owners == list(range(len(lengths))) else torch.tensor(owners, dtype=torch.int64, device=device),
            torch.tensor([own + [0] * (size - len(own)) for _, own in tiles], dtype=torch.int64, device=device).view(len(tiles), size),
            torch.tensor(places, dtype=torch.int64, device=device),
            max(own_lengths, default=0),
        )


def decode_attention(
    q: Tensor,
    cache_k: Tensor,
    cache_v: Tensor,
    lengths: Tensor,
    prefix_k: Tensor | None = None,
    prefix_v: Tensor | None = None,
    tiles: PrefixTiles | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention of one new query per row against the row's own cache and the prefix that it shares with others.

    A prefix's product is computed once over the rows of a tile (Juravsky et al. 2024, Hydragen), the caches' in one batch.

    q: [B, Hq, D]. cache_k, cache_v: [B, Hkv, C, D]; row b uses its first lengths[b] slots, the new token's own key
    among them, so its path position is its prefix's tokens + lengths[b] - 1. lengths: int64 [B]. prefix_k, prefix_v:
    [G, Hkv, P, D], each prefix in its first slots, or None; `tiles` says which row reads which.
    scale, window, softcap, sinks: as in `prefix_attention`. Returns [B, Hq, D] in the dtype of q, zeros in a row that
    sees no key. Raises ValueError, naming the argument, if shapes do not fit.
    """
    _check(q, cache_k, cache_v, lengths, prefix_k, prefix_v, tiles, sinks)
    batch, heads, dim = q.shape
    kv_heads, slots = cache_k.shape[1:3]
    group = heads // kv_heads
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    scale = dim**-0.5 if scale is None else scale

    slot = torch.arange(slots, device=q.device)
    visible = slot < lengths[:, None]
    if window is not None:
        visible &= slot >= lengths[:, None] - window
    by_row = q.reshape(batch * kv_heads, group, dim)
    parts = [torch.bmm(by_row, cache_k.reshape(batch * kv_heads, slots, dim).transpose(1, 2)).view(batch, heads, slots)]
    masks = [visible]
    prefix = 0 if tiles is None else tiles.longest
    if prefix_k is not None and tiles is not None and prefix:
        by_tile = _to_tiles(q, tiles, kv_heads)
        shared = torch.bmm(by_tile, _of_tiles(prefix_k, tiles).transpose(1, 2))
        parts.insert(0, _to_rows(shared, tiles, heads))
        key = torch.arange(prefix, device=q.device)
        present = key < tiles.lengths[:, None]
        if window is not None:
            present &= (tiles.lengths + lengths)[:, None] - 1 - key < window
        masks.insert(0, present)

    scores = torch.cat(parts, dim=-1).to(wide).mul_(scale)
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    hidden = ~torch.cat(masks, dim=-1)[:, None]
    scores.masked_fill_(hidden, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.to(wide)[None, :, None].expand(batch, -1, 1)], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., : prefix + slots]
    weights = weights.masked_fill(hidden, 0).to(q.dtype)  # a row that sees nothing is not a number until here

    own = weights[..., prefix:].reshape(batch * kv_heads, group, slots)
    out = torch.bmm(own, cache_v.reshape(batch * kv_heads, slots, dim)).view(batch, heads, dim)
    if prefix_v is not None and tiles is not None and prefix:
        shared = torch.bmm(_to_tiles(weights[..., :prefix], tiles, kv_heads), _of_tiles(prefix_v, tiles))
        out = out + _to_rows(shared, tiles, heads)
    return out


def _to_tiles(x: Tensor, tiles: PrefixTiles, kv_heads: int) -> Tensor:
    """[B, Hq, n] of the rows -> [T * Hkv, R * group, n] of the tiles."""
    count, size = tiles.rows.shape
    heads, width = x.shape[1:]
    by_place = x[tiles.rows.flatten()].view(count, size, kv_heads, heads // kv_heads, width)
    return by_place.transpose(1, 2).reshape(count * kv_heads, -1, width)


def _to_rows(x: Tensor, tiles: PrefixTiles, heads: int) -> Tensor:
    """[T * Hkv, R * group, n] of the tiles -> [B, Hq, n] of the rows."""
    count, size = tiles.rows.shape
    kv_heads, width = len(x) // count, x.shape[2]
    by_place = x.view(count, kv_heads, size, heads // kv_heads, width).transpose(1, 2)
    return by_place.reshape(count * size, heads, width)[tiles.places]


def _of_tiles(states: Tensor, tiles: PrefixTiles) -> Tensor:
    """[G, Hkv, P, D] of the prefixes -> [T * Hkv, longest, D] of the tiles."""
    own = states[:, :, : tiles.longest] if tiles.owners is None else states[tiles.owners, :, : tiles.longest]
    return own.flatten(0, 1)


def _check(
    q: Tensor,
    cache_k: Tensor,
    cache_v: Tensor,
    lengths: Tensor,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    tiles: PrefixTiles | None,
    sinks: Tensor | None,
) -> None:
    if q.ndim != 3:
        raise ValueError(f"q has shape {list(q.shape)}: needed is [B, Hq, D]")
    batch, heads, dim = q.shape
    if cache_k.ndim != 4 or cache_k.shape[0] != batch or cache_k.shape[3] != dim:
        raise ValueError(f"cache_k has shape {list(cache_k.shape)}: needed is [{batch}, Hkv, C, {dim}]")
    kv_heads = cache_k.shape[1]
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"q has {heads} heads and cache_k has {kv_heads}: the first must be a multiple of the second")
    if len({given is None for given in (prefix_k, prefix_v, tiles)}) > 1:
        raise ValueError("prefix_k, prefix_v and tiles must be given together or not at all")
    if prefix_k is not None and (prefix_k.ndim != 4 or (tiles is not None and prefix_k.shape[2] < tiles.longest)):
        raise ValueError(f"prefix_k has shape {list(prefix_k.shape)}: needed is [G, {kv_heads}, P, {dim}], P at least that of the tiles")
    of_prefix = [] if prefix_k is None else [len(prefix_k), kv_heads, prefix_k.shape[2], dim]
    expected = {
        "cache_v": (cache_v, list(cache_k.shape)),
        "lengths": (lengths, [batch]),
        "prefix_k": (prefix_k, of_prefix),
        "prefix_v": (prefix_v, of_prefix),
        "tiles.lengths": (None if tiles is None else tiles.lengths, [batch]),
        "sinks": (sinks, [heads]),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and list(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}: needed is {shape}")
