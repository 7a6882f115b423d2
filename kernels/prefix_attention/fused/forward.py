"""The forward kernel: one tile of rows, one head, one online softmax over prefixes, ancestors and own keys."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from .primitives import dot, load_heads, near, scores_of, store_heads


@triton.jit
def _absorb(q, k, v, visible, peak, total, acc, scale, softcap, MASKED: tl.constexpr, HAS_CAP: tl.constexpr, UPCAST: tl.constexpr):
    """One block of keys joins the running softmax of a tile."""
    scores, _ = scores_of(dot(q, tl.trans(k), UPCAST), scale, softcap, HAS_CAP)
    if MASKED:
        scores = tl.where(visible, scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, 1))
    # a row that has seen nothing yet has peak -inf, and -inf minus -inf is not a number
    base = tl.where(new_peak == float("-inf"), 0.0, new_peak)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(peak - base)
    total = total * shrink + tl.sum(weights, 1)
    acc = acc * shrink[:, None] + dot(weights.to(v.dtype), v, UPCAST)
    return new_peak, total, acc


@triton.jit
def forward_kernel(
    q, k, v, prefix_k, prefix_v, sinks, out, lse,
    first, last, position,  # int32 [S]
    tile_order, prefix_begin, full_begin, masked_begin,  # int32 [tiles], then [tiles + 1] each
    prefix_visits, full_visits, masked_visits,  # int32 block numbers
    prefix_blocks,  # int32 [blocks, 5]: first key, last key + 1, first row, last row + 1, key of position 0
    tokens, scale, softcap, window,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr,
    BIDIRECTIONAL: tl.constexpr, HAS_WINDOW: tl.constexpr, HAS_CAP: tl.constexpr, HAS_SINKS: tl.constexpr,
    UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, Hq). q, out [S, Hq, D]; k, v [S, Hkv, D]; prefix_k, prefix_v [P, Hkv, D]; lse [S, Hq] float32."""
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

    acc = tl.zeros([ROWS, BLOCK_D], dtype=tl.float32)
    if HAS_SINKS:  # a key whose value is zero
        peak = tl.zeros([ROWS], dtype=tl.float32) + tl.load(sinks + head).to(tl.float32) * LOG2_E
        total = tl.zeros([ROWS], dtype=tl.float32) + 1.0
    else:
        peak = tl.zeros([ROWS], dtype=tl.float32) + float("-inf")
        total = tl.zeros([ROWS], dtype=tl.float32)

    for visit in range(tl.load(prefix_begin + tile), tl.load(prefix_begin + tile + 1)):
        block = prefix_blocks + tl.load(prefix_visits + visit) * 5
        key = tl.load(block) + tl.arange(0, KEYS)
        real_key = key < tl.load(block + 1)
        keys = load_heads(prefix_k + kv_head * D, key, real_key, kv_stride, D, BLOCK_D)
        values = load_heads(prefix_v + kv_head * D, key, real_key, kv_stride, D, BLOCK_D)
        visible = ((row >= tl.load(block + 2)) & (row < tl.load(block + 3)))[:, None] & real_key[None, :]
        if not BIDIRECTIONAL:
            visible &= near(row_position, (key - tl.load(block + 4))[None, :], window, HAS_WINDOW)
        peak, total, acc = _absorb(
            tile_q, keys, values, visible, peak, total, acc, scale, softcap, True, HAS_CAP, UPCAST
        )  # fmt: skip

    for visit in range(tl.load(full_begin + tile), tl.load(full_begin + tile + 1)):
        key = tl.load(full_visits + visit) * KEYS + tl.arange(0, KEYS)
        keys = load_heads(k + kv_head * D, key, key < tokens, kv_stride, D, BLOCK_D)
        values = load_heads(v + kv_head * D, key, key < tokens, kv_stride, D, BLOCK_D)
        peak, total, acc = _absorb(
            tile_q, keys, values, real[:, None], peak, total, acc, scale, softcap, False, HAS_CAP, UPCAST
        )  # fmt: skip

    for visit in range(tl.load(masked_begin + tile), tl.load(masked_begin + tile + 1)):
        key = tl.load(masked_visits + visit) * KEYS + tl.arange(0, KEYS)
        real_key = key < tokens
        keys = load_heads(k + kv_head * D, key, real_key, kv_stride, D, BLOCK_D)
        values = load_heads(v + kv_head * D, key, real_key, kv_stride, D, BLOCK_D)
        key_first = tl.load(first + key, mask=real_key, other=0)
        key_last = tl.load(last + key, mask=real_key, other=0)  # keys past the end are seen by no row
        visible = (key_first[None, :] <= row[:, None]) & (row[:, None] < key_last[None, :])
        if HAS_WINDOW:
            key_position = tl.load(position + key, mask=real_key, other=0)
            visible &= near(row_position, key_position[None, :], window, HAS_WINDOW)
        peak, total, acc = _absorb(
            tile_q, keys, values, visible, peak, total, acc, scale, softcap, True, HAS_CAP, UPCAST
        )  # fmt: skip

    blind = total == 0.0
    acc = acc / tl.where(blind, 1.0, total)[:, None]
    store_heads(out + head * D, row, real, q_stride, acc, D, BLOCK_D)
    # +inf makes every weight of a blind row zero in the backward
    row_lse = tl.where(blind, float("inf"), (peak + tl.log2(tl.where(blind, 1.0, total))) / LOG2_E)
    tl.store(lse + row.to(tl.int64) * HEADS + head, row_lse, mask=real)
