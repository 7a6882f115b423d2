"""Index arithmetic of the Triton kernels: which key blocks a tile of rows meets, and the work list of the backward.

Made on the host from the forest alone, vectorised, in O(tokens + visits); the kernels only read it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..forest import PromptForest
from ..standing import StandingForest

_MIN_CHUNK = 512  # rows: an item of the backward's work list is not cut below this
_ITEMS = 256  # nor are blocks cut into many more items than this; both follow from the shape, so reruns agree bit by bit


@dataclass(frozen=True, eq=False)
class QueryPlan:
    """For forward and dq: the key blocks of each tile of rows, in three compressed lists (int32, on the device).

    Tile t meets prefix_visits[prefix_begin[t] : prefix_begin[t + 1]] and likewise full and masked blocks of token
    keys; in a full block every row of the tile sees every key.
    """

    tiles: int
    tile_order: Tensor  # [tiles] the longest work first
    prefix_begin: Tensor  # [tiles + 1]
    full_begin: Tensor
    masked_begin: Tensor
    prefix_visits: Tensor
    full_visits: Tensor
    masked_visits: Tensor
    prefix_blocks: Tensor  # [blocks, 5] first key, last key + 1, first row, last row + 1, key of position 0


@dataclass(frozen=True, eq=False)
class KeyWork:
    """For dk and dv: items of one key block and some tiles of rows, and which slots a split block sums.

    work: int32 [items, 10]: first key, last key + 1, first tile, first and last + 1 full tile, last tile + 1, slot or
    -1, first row, last row + 1, key of position 0 (the last three for external prefixes).
    """

    items: int
    work: Tensor
    slots: int
    split: Tensor  # int32 [split blocks, 4] first key, last key + 1, first slot, last slot + 1


@dataclass(frozen=True, eq=False)
class KeyPlan:
    """The backward's work for token keys and for the keys of external prefixes."""

    tokens: KeyWork
    prefixes: KeyWork


@dataclass(frozen=True, eq=False)
class _Blocks:
    """Blocks of keys and the tiles of rows [first_tile, last_tile) that meet each."""

    keys: Tensor  # [n, 2] first, last + 1
    tiles: Tensor  # [n, 2]
    full_tiles: Tensor  # [n, 2] tiles that see every key; empty where a window or padding may hide one


def active_window(forest: PromptForest, window: int | None) -> int | None:
    """The window, or None where no path is long enough for it to hide anything."""
    return None if window is None or window >= forest.longest_path else window


def query_plan(forest: PromptForest, rows: int, keys: int, window: int | None) -> QueryPlan:
    """The forward's plan for tiles of `rows` rows and blocks of `keys` keys, kept with the forest."""
    plan: QueryPlan = forest.plan(("triton queries", rows, keys, window), lambda: _query_plan(forest, rows, keys, window))
    return plan


def key_plan(forest: PromptForest, rows: int, keys: int, window: int | None) -> KeyPlan:
    """The backward's work lists for blocks of `keys` keys and tiles of `rows` rows, kept with the forest."""
    plan: KeyPlan = forest.plan(("triton keys", rows, keys, window), lambda: _key_plan(forest, rows, keys, window))
    return plan


def index_tensors(forest: PromptForest) -> tuple[Tensor, Tensor, Tensor]:
    """first, last and position_ids as int32 on the device."""

    def build() -> tuple[Tensor, Tensor, Tensor]:
        host = forest.host
        first, last, position = (_moved(x, forest.device) for x in (host.first, host.last, host.position_ids))
        return first, last, position

    tensors: tuple[Tensor, Tensor, Tensor] = forest.plan("triton index", build)
    return tensors


def _query_plan(forest: PromptForest, rows: int, keys: int, window: int | None) -> QueryPlan:
    host, device = forest.host, forest.device
    tiles = -(-host.num_tokens // rows)
    blocks, (tile, block) = _token_blocks(host, rows, keys, window)
    full = (tile >= blocks.full_tiles[block, 0]) & (tile < blocks.full_tiles[block, 1])
    prefix_blocks, prefix_table = _prefix_blocks(host, rows, keys)
    lists = [
        _compressed(*_visits(prefix_blocks.tiles), tiles),
        _compressed(tile[full], block[full], tiles),
        _compressed(tile[~full], block[~full], tiles),
    ]
    if isinstance(forest, StandingForest):
        met = _most_visits(forest, rows, keys)
        lists = [(begin, _filled(visits, room)) for (begin, visits), room in zip(lists, (tiles * len(prefix_table), met, met), strict=True)]
    cost = sum((begin.diff() for begin, _ in lists), torch.zeros(tiles, dtype=torch.int64))
    begins, visits = zip(*lists, strict=True)
    moved = [_moved(x, device) for x in (cost.argsort(descending=True, stable=True), *begins, *visits, prefix_table)]
    return QueryPlan(tiles, *moved)


def _key_plan(forest: PromptForest, rows: int, keys: int, window: int | None) -> KeyPlan:
    host = forest.host
    tokens, _ = _token_blocks(host, rows, keys, window)
    prefixes, table = _prefix_blocks(host, rows, keys)
    if window is not None and not host.bidirectional:
        prefixes = _Blocks(prefixes.keys, prefixes.tiles, torch.zeros_like(prefixes.tiles))
    visits = sum(int((blocks.tiles[:, 1] - blocks.tiles[:, 0]).sum()) for blocks in (tokens, prefixes))
    chunk = max(_MIN_CHUNK // rows, -(-visits // _ITEMS), 1)
    nothing = torch.zeros(len(tokens.keys), 3, dtype=torch.int64)
    works = (_key_work(tokens, nothing, chunk, forest.device), _key_work(prefixes, table[:, 2:], chunk, forest.device))
    if isinstance(forest, StandingForest):
        works = (_of_fixed_size(works[0], len(tokens.keys)), _of_fixed_size(works[1], len(table)))
    return KeyPlan(*works)


def _most_visits(forest: PromptForest, rows: int, keys: int) -> int:
    """Pairs of a tile and a block of token keys that meet in the worst forest of this many tokens."""
    ends = torch.arange(rows, forest.num_tokens + rows, rows).clamp(max=forest.num_tokens)
    seen = torch.full_like(ends, forest.num_tokens) if forest.bidirectional else ends
    return int((-(-seen // keys)).sum())


def _filled(x: Tensor, room: int) -> Tensor:
    """x with zeros behind it, which no kernel looks at."""
    return torch.cat([x, x.new_zeros(room - len(x), *x.shape[1:])])


def _of_fixed_size(work: KeyWork, blocks: int) -> KeyWork:
    """The work with empty items and sums behind it. No forest has more: a block has one item, and one more per chunk.

    A chunk is at least a share 1 / _ITEMS of all visits; a block that is split has at least as many cuts as halves of its slots.
    """
    cuts = _ITEMS if blocks else 0
    items = _filled(work.work, blocks + cuts)
    items[work.items :, 6] = -1  # writes no slot, and has no key to write
    return KeyWork(len(items), items, 2 * cuts, _filled(work.split, cuts))


def _key_work(blocks: _Blocks, extra: Tensor, chunk: int, device: torch.device) -> KeyWork:
    """Cut each block's tiles into chunks; a block of several chunks gets one slot per chunk."""
    first_tile, last_tile = blocks.tiles.unbind(1)
    pieces = (-((first_tile - last_tile) // chunk)).clamp(min=1)
    block = torch.repeat_interleave(torch.arange(len(pieces)), pieces)
    piece = torch.arange(len(block)) - (pieces.cumsum(0) - pieces)[block]
    begin = first_tile[block] + piece * chunk
    end = torch.minimum(begin + chunk, last_tile[block])
    full_begin = torch.minimum(torch.maximum(blocks.full_tiles[block, 0], begin), end)
    full_end = torch.minimum(torch.maximum(blocks.full_tiles[block, 1], full_begin), end)

    is_split = pieces > 1
    slots_before = torch.where(is_split, pieces, 0).cumsum(0) - torch.where(is_split, pieces, 0)
    slot = torch.where(is_split[block], slots_before[block] + piece, -1)
    columns = [begin, full_begin, full_end, end, slot]
    work = torch.cat([blocks.keys[block], torch.stack(columns, dim=1), extra[block]], dim=1)
    work = work[(end - begin).argsort(descending=True, stable=True)]
    split = torch.cat([blocks.keys, slots_before[:, None], (slots_before + pieces)[:, None]], dim=1)[is_split]
    return KeyWork(len(work), _moved(work, device), int(pieces[is_split].sum()), _moved(split, device))


def _token_blocks(host: PromptForest, rows: int, keys: int, window: int | None) -> tuple[_Blocks, tuple[Tensor, Tensor]]:
    """Blocks of token keys, and the (tile, block) pairs that meet.

    Every key is visible to its own row at least, so the rows that see a block are one range without holes.
    """
    tokens = host.num_tokens
    key_begin = torch.arange(0, tokens, keys)
    key_end = (key_begin + keys).clamp(max=tokens)
    tiles = torch.stack([_per_block(host.first, keys).amin(1) // rows, -(-_per_block(host.last, keys).amax(1) // rows)], 1)
    seen_from = -(-_per_block(host.first, keys).amax(1) // rows)
    seen_by_all = _per_block(host.last, keys).amin(1)
    seen_to = torch.where(seen_by_all == tokens, -(-tokens // rows), seen_by_all // rows)
    complete = key_end - key_begin == keys
    full = torch.stack([seen_from, torch.where(complete, torch.maximum(seen_to, seen_from), seen_from)], 1)
    tile, block = _visits(tiles)
    if window is None:
        return _Blocks(torch.stack([key_begin, key_end], 1), tiles, full), (tile, block)

    by_key, by_row = _per_block(host.position_ids, keys), _per_block(host.position_ids, rows)
    ahead = by_row.amin(1)[tile] - by_key.amax(1)[block]
    behind = by_key.amin(1)[block] - by_row.amax(1)[tile]
    met = (ahead < window) & (behind < window)
    tile, block = tile[met], block[met]
    reached = torch.zeros(len(tiles), 2, dtype=torch.int64)
    reached[:, 0] = len(by_row)
    reached[:, 0].scatter_reduce_(0, block, tile, "amin")
    reached[:, 1].scatter_reduce_(0, block, tile + 1, "amax")
    reached[:, 0] = torch.minimum(reached[:, 0], reached[:, 1])
    nowhere = torch.zeros_like(full)
    return _Blocks(torch.stack([key_begin, key_end], 1), reached, nowhere), (tile, block)


def _prefix_blocks(host: PromptForest, rows: int, keys: int) -> tuple[_Blocks, Tensor]:
    """Blocks of the external prefixes' keys, none across two prefixes, and their table for the kernels."""
    segments = host.segments
    starts, sizes = segments.prefix_starts[:-1], segments.prefix_starts.diff()
    counts = -(-sizes // keys)
    prefix = torch.repeat_interleave(torch.arange(len(sizes)), counts)
    number = torch.arange(len(prefix)) - (counts.cumsum(0) - counts)[prefix]
    key_begin = starts[prefix] + number * keys
    key_end = torch.minimum(key_begin + keys, starts[prefix] + sizes[prefix])
    first_row, last_row = segments.prefix_rows[prefix].unbind(1)
    used = last_row > first_row
    tiles = torch.stack([first_row // rows, torch.where(used, -(-last_row // rows), first_row // rows)], 1)
    seen_to = torch.where(last_row == host.num_tokens, -(-last_row // rows), last_row // rows)
    seen_from = -(-first_row // rows)
    complete = key_end - key_begin == keys
    full = torch.stack([seen_from, torch.where(complete, torch.maximum(seen_to, seen_from), seen_from)], 1)
    table = torch.stack([key_begin, key_end, first_row, last_row, starts[prefix]], 1)
    return _Blocks(torch.stack([key_begin, key_end], 1), tiles, full), table


def _visits(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """Ranges of tiles per block [n, 2] -> all pairs (tile, block)."""
    counts = tiles[:, 1] - tiles[:, 0]
    block = torch.repeat_interleave(torch.arange(len(tiles)), counts)
    return tiles[block, 0] + torch.arange(len(block)) - (counts.cumsum(0) - counts)[block], block


def _compressed(tile: Tensor, block: Tensor, tiles: int) -> tuple[Tensor, Tensor]:
    """Pairs -> where each tile's blocks begin [tiles + 1], and the blocks."""
    begin = torch.zeros(tiles + 1, dtype=torch.int64)
    begin[1:] = torch.bincount(tile, minlength=tiles).cumsum(0)
    return begin, block[tile.argsort(stable=True)]


def _per_block(values: Tensor, size: int) -> Tensor:
    """[S] -> [ceil(S / size), size]; the last value fills the last block."""
    missing = -len(values) % size
    return torch.cat([values, values[-1:].expand(missing)]).view(-1, size)


def _moved(x: Tensor, device: torch.device) -> Tensor:
    x = x.to(torch.int32).contiguous()
    return x if device.type == "cpu" else x.pin_memory().to(device, non_blocking=True)
