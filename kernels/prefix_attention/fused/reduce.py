"""The reduction kernel: adds up the slots of a key block that was split, always in the same order."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from .primitives import load_heads, store_heads


@triton.jit
def reduce_kernel(
    partial_dk, partial_dv, dk, dv,
    blocks,  # int32 [split blocks, 4]: first key, last key + 1, first slot, last slot + 1
    KV_HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, KEYS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """Grid (split blocks, Hkv, KEYS // PART). partial [slots, Hkv, KEYS, D] float32 -> dk, dv [N, Hkv, D]."""
    block = blocks + tl.program_id(0) * 4
    kv_head = tl.program_id(1)
    own = tl.program_id(2) * PART + tl.arange(0, PART)
    key = tl.load(block) + own
    real_key = key < tl.load(block + 1)
    dk_part = tl.zeros([PART, BLOCK_D], dtype=tl.float32)
    dv_part = tl.zeros([PART, BLOCK_D], dtype=tl.float32)
    first_slot = tl.load(block + 2)
    place = (first_slot.to(tl.int64) * KV_HEADS + kv_head) * KEYS * D
    for _ in range(first_slot, tl.load(block + 3)):
        dk_part += load_heads(partial_dk + place, own, real_key, D, D, BLOCK_D)
        dv_part += load_heads(partial_dv + place, own, real_key, D, D, BLOCK_D)
        place += KV_HEADS * KEYS * D
    store_heads(dk + kv_head * D, key, real_key, KV_HEADS * D, dk_part, D, BLOCK_D)
    store_heads(dv + kv_head * D, key, real_key, KV_HEADS * D, dv_part, D, BLOCK_D)
