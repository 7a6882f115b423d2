"""The backward kernels: delta of each row, dq on the forward's grid, dk and dv over a work list of key blocks."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from .primitives import dot, load_heads, near, scores_of, store_heads


@triton.jit
def delta_kernel(
    out, grad, delta, rows_times_heads,
    D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Grid (ceil(S * Hq / ROWS),). out, grad [S * Hq, D] -> delta [S * Hq] float32, their row-wise products summed."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = row < rows_times_heads
    a = load_heads(out, row, real, D, D, BLOCK_D).to(tl.float32)
    b = load_heads(grad, row, real, D, D, BLOCK_D).to(tl.float32)
    tl.store(delta + row, tl.sum(a * b, 1), mask=real)


@triton.jit
def _dq_step(
    q, grad, k, v, visible, row_lse, row_delta, acc, scale, softcap,
    MASKED: tl.constexpr, HAS_CAP: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """What one block of keys adds to the gradient of a tile of rows."""
    scores, slope = scores_of(dot(q, tl.trans(k), UPCAST), scale, softcap, HAS_CAP)
    weights = tl.exp2(scores - row_lse[:, None])
    if MASKED:
        weights = tl.where(visible, weights, 0.0)
    ds = weights * (dot(grad, tl.trans(v), UPCAST) - row_delta[:, None])
    if HAS_CAP:
        ds = ds * slope
    return acc + dot(ds.to(k.dtype), k, UPCAST)


@triton.jit
def dq_kernel(
    q, k, v, prefix_k, prefix_v, grad, lse, delta, dq,
    first, last, position,
    tile_order, prefix_begin, full_begin, masked_begin,
    prefix_visits, full_visits, masked_visits, prefix_blocks,
    tokens, scale, softcap, window,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
    BIDIRECTIONAL: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, Hq), loops as in `forward_kernel`. grad, dq [S, Hq, D]; lse, delta [S, Hq] float32."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    tile = tl.load(tile_order + tl.program_id(0))
    head = tl.program_id(1)
    kv_head = head // (HEADS // KV_HEADS)
    q_stride: tl.constexpr = HEADS * D
    kv_stride: tl.constexpr = KV_HEADS * D

    row = tile * ROWS + tl.arange(0, ROWS)
    real = row < tokens
    row_position = tl.load(position + row, mask=real, other=0)[:, None]
    tile_q = load_heads(q + head * D, row, real, q_stride, D, BLOCK_D)
    tile_grad = load_heads(grad + head * D, row, real, q_stride, D, BLOCK_D)
    at = row.to(tl.int64) * HEADS + head
    row_lse = tl.load(lse + at, mask=real, other=float("inf")) * LOG2_E
    row_delta = tl.load(delta + at, mask=real, other=0.0)
    acc = tl.zeros([ROWS, BLOCK_D], dtype=tl.float32)

    for visit in range(tl.load(prefix_begin + tile), tl.load(prefix_begin + tile + 1)):
        block = prefix_blocks + tl.load(prefix_visits + visit) * 5
        key = tl.load(block) + tl.arange(0, KEYS)
        real_key = key < tl.load(block + 1)
        keys = load_heads(prefix_k + kv_head * D, key, real_key, kv_stride, D, BLOCK_D)
        values = load_heads(prefix_v + kv_head * D, key, real_key, kv_stride, D, BLOCK_D)
        visible = ((row >= tl.load(block + 2)) & (row < tl.load(block + 3)))[:, None] & real_key[None, :]
        if not BIDIRECTIONAL:
            visible &= near(row_position, (key - tl.load(block + 4))[None, :], window, HAS_WINDOW)
        acc = _dq_step(
            tile_q, tile_grad, keys, values, visible, row_lse, row_delta, acc, scale, softcap, True, HAS_CAP, UPCAST
        )  # fmt: skip

    for visit in range(tl.load(full_begin + tile), tl.load(full_begin + tile + 1)):
        key = tl.load(full_visits + visit) * KEYS + tl.arange(0, KEYS)
        keys = load_heads(k + kv_head * D, key, key < tokens, kv_stride, D, BLOCK_D)
        values = load_heads(v + kv_head * D, key, key < tokens, kv_stride, D, BLOCK_D)
        acc = _dq_step(
            tile_q, tile_grad, keys, values, real[:, None], row_lse, row_delta, acc, scale, softcap, False, HAS_CAP, UPCAST
        )  # fmt: skip

    for visit in range(tl.load(masked_begin + tile), tl.load(masked_begin + tile + 1)):
        key = tl.load(masked_visits + visit) * KEYS + tl.arange(0, KEYS)
        real_key = key < tokens
        keys = load_heads(k + kv_head * D, key, real_key, kv_stride, D, BLOCK_D)
        values = load_heads(v + kv_head * D, key, real_key, kv_stride, D, BLOCK_D)
        key_first = tl.load(first + key, mask=real_key, other=0)
        key_last = tl.load(last + key, mask=real_key, other=0)
        visible = (key_first[None, :] <= row[:, None]) & (row[:, None] < key_last[None, :])
        if HAS_WINDOW:
            key_position = tl.load(position + key, mask=real_key, other=0)
            visible &= near(row_position, key_position[None, :], window, HAS_WINDOW)
        acc = _dq_step(
            tile_q, tile_grad, keys, values, visible, row_lse, row_delta, acc, scale, softcap, True, HAS_CAP, UPCAST
        )  # fmt: skip

    store_heads(dq + head * D, row, real, q_stride, acc * scale, D, BLOCK_D)


@triton.jit
def _dkv_step(
    k, v, key_first, key_last, key_position, tile, head, q, grad, lse, delta, position, tokens,
    dk, dv, scale, softcap, window,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
    MASKED: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """What one tile of rows of one head adds to a block of keys. Scores are transposed: [KEYS, ROWS]."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    row = tile * ROWS + tl.arange(0, ROWS)
    real = row < tokens
    tile_q = load_heads(q + head * D, row, real, HEADS * D, D, BLOCK_D)
    tile_grad = load_heads(grad + head * D, row, real, HEADS * D, D, BLOCK_D)
    at = row.to(tl.int64) * HEADS + head
    row_lse = tl.load(lse + at, mask=real, other=float("inf")) * LOG2_E
    row_delta = tl.load(delta + at, mask=real, other=0.0)

    scores, slope = scores_of(dot(k, tl.trans(tile_q), UPCAST), scale, softcap, HAS_CAP)
    weights = tl.exp2(scores - row_lse[None, :])
    if MASKED:
        visible = (key_first[:, None] <= row[None, :]) & (row[None, :] < key_last[:, None])
        if HAS_WINDOW:
            row_position = tl.load(position + row, mask=real, other=0)
            visible &= near(row_position[None, :], key_position[:, None], window, HAS_WINDOW)
        weights = tl.where(visible, weights, 0.0)
    dv += dot(weights.to(tile_grad.dtype), tile_grad, UPCAST)
    ds = weights * (dot(v, tl.trans(tile_grad), UPCAST) - row_delta[None, :])
    if HAS_CAP:
        ds = ds * slope
    dk += dot(ds.to(tile_q.dtype), tile_q, UPCAST)
    return dk, dv


@triton.jit
def dkv_kernel(
    q, k, v, grad, lse, delta, dk, dv, partial_dk, partial_dv,
    first, last, position,
    work,  # int32 [items, 10], see plan.KeyPlan
    tokens, scale, softcap, window,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, PREFIX: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid (items, Hkv). k, v, dk, dv [N, Hkv, D]: token keys, or the external prefixes' with PREFIX.

    The query heads of a KV head are summed inside, tile after tile, so no two programs write to one place. A block
    that many rows see is split into items; each writes float32 to a slot of its own: partial [slots, Hkv, KEYS, D].
    """
    item = work + tl.program_id(0) * 10
    kv_head = tl.program_id(1)
    group: tl.constexpr = HEADS // KV_HEADS
    kv_stride: tl.constexpr = KV_HEADS * D

    begin = tl.load(item)
    key = begin + tl.arange(0, KEYS)
    real_key = key < tl.load(item + 1)
    keys = load_heads(k + kv_head * D, key, real_key, kv_stride, D, BLOCK_D)
    values = load_heads(v + kv_head * D, key, real_key, kv_stride, D, BLOCK_D)
    if PREFIX:
        key_first = tl.where(real_key, tl.load(item + 7), 0)
        key_last = tl.where(real_key, tl.load(item + 8), 0)
        key_position = key - tl.load(item + 9)
    else:
        key_first = tl.load(first + key, mask=real_key, other=0)
        key_last = tl.load(last + key, mask=real_key, other=0)
        key_position = tl.load(position + key, mask=real_key, other=0)
    dk_block = tl.zeros([KEYS, BLOCK_D], dtype=tl.float32)
    dv_block = tl.zeros([KEYS, BLOCK_D], dtype=tl.float32)

    tile_begin, full_begin = tl.load(item + 2), tl.load(item + 3)
    full_end, tile_end = tl.load(item + 4), tl.load(item + 5)
    for head in range(kv_head * group, (kv_head + 1) * group):
        for tile in range(tile_begin, full_begin):
            dk_block, dv_block = _dkv_step(
                keys, values, key_first, key_last, key_position, tile, head, q, grad, lse, delta, position, tokens,
                dk_block, dv_block, scale, softcap, window,
                HEADS, D, BLOCK_D, ROWS, True, HAS_WINDOW, HAS_CAP, UPCAST,
            )  # fmt: skip
        for tile in range(full_begin, full_end):
            dk_block, dv_block = _dkv_step(
                keys, values, key_first, key_last, key_position, tile, head, q, grad, lse, delta, position, tokens,
                dk_block, dv_block, scale, softcap, window,
                HEADS, D, BLOCK_D, ROWS, False, HAS_WINDOW, HAS_CAP, UPCAST,
            )  # fmt: skip
        for tile in range(full_end, tile_end):
            dk_block, dv_block = _dkv_step(
                keys, values, key_first, key_last, key_position, tile, head, q, grad, lse, delta, position, tokens,
                dk_block, dv_block, scale, softcap, window,
                HEADS, D, BLOCK_D, ROWS, True, HAS_WINDOW, HAS_CAP, UPCAST,
            )  # fmt: skip

    dk_block = dk_block * scale
    slot = tl.load(item + 6)
    if slot < 0:
        store_heads(dk + kv_head * D, key, real_key, kv_stride, dk_block, D, BLOCK_D)
        store_heads(dv + kv_head * D, key, real_key, kv_stride, dv_block, D, BLOCK_D)
    else:
        place = (slot.to(tl.int64) * KV_HEADS + kv_head) * KEYS * D
        own = tl.arange(0, KEYS)
        store_heads(partial_dk + place, own, real_key, D, dk_block, D, BLOCK_D)
        store_heads(partial_dv + place, own, real_key, D, dv_block, D, BLOCK_D)
