"""What the kernels share: loads of heads, products, scores, visibility."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_heads(base, rows, real, stride, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """[rows, BLOCK_D] of one head; `base` points at the head of row 0, rows that are not real give zeros."""
    d = tl.arange(0, BLOCK_D)
    pointers = base + rows[:, None].to(tl.int64) * stride + d[None, :]
    if D == BLOCK_D:
        return tl.load(pointers, mask=real[:, None], other=0.0)
    else:  # noqa: RET505 - a constexpr branch: without else both would be compiled
        return tl.load(pointers, mask=real[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def store_heads(base, rows, real, stride, values, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """The inverse of `load_heads`, in the pointer's dtype."""
    d = tl.arange(0, BLOCK_D)
    pointers = base + rows[:, None].to(tl.int64) * stride + d[None, :]
    mask = real[:, None] & (d < D)[None, :]
    tl.store(pointers, values.to(base.dtype.element_ty), mask=mask)


@triton.jit
def dot(a, b, UPCAST: tl.constexpr):
    """a @ b in float32. UPCAST is for the interpreter, which multiplies bfloat16 wrongly."""
    if UPCAST:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    else:  # noqa: RET505
        return tl.dot(a, b, input_precision="ieee")


@triton.jit
def scores_of(products, scale, softcap, HAS_CAP: tl.constexpr):
    """Scores in units of log 2, and the slope of the softcap (1 without one)."""
    LOG2_E: tl.constexpr = 1.4426950408889634
    if HAS_CAP:
        tanh = 1.0 - 2.0 / (1.0 + tl.exp2(products * (scale / softcap * 2.0 * LOG2_E)))
        return tanh * (softcap * LOG2_E), 1.0 - tanh * tanh
    else:  # noqa: RET505
        return products * (scale * LOG2_E), 1.0


@triton.jit
def near(row_position, key_position, window, HAS_WINDOW: tl.constexpr):
    """Whether positions along the path are less than a window apart; broadcasts."""
    if HAS_WINDOW:
        distance = row_position - key_position
        return (distance < window) & (distance > -window)
    else:  # noqa: RET505
        return (row_position == row_position) & (key_position == key_position)
