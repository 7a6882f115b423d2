"""The CPU backend: forward and backward over the products of a plan, merged by log-sum-exp."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cpu_plan import MASKED, Plan, Product, plan_of
from .cpu_scratch import Scratch
from .forest import PromptForest

_LOG2_E = math.log2(math.e)
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_scratch = Scratch()


@dataclass(frozen=True)
class Scores:
    """How a score is made from q . k: scale, then softcap, then the mask. In units of log 2, for exp2 is the fast one."""

    forest: PromptForest
    window: int | None
    scale: float
    softcap: float | None
    dtype: torch.dtype  # of sums and exponentials

    def of(self, product: Product, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor | None]:
        """q [B * Hkv, G * L, D], k [B * Hkv, K, D] -> scores [B * Hkv, G * L, K], and tanh where there is a softcap."""
        unit = _LOG2_E if self.softcap is None else 1 / self.softcap
        scores = _scratch.product("weights", q, k.transpose(1, 2), self.scale * unit)
        scores = _scratch.cast("scores", scores, self.dtype)
        tanh = None
        if self.softcap is not None:
            tanh = scores.tanh()
            scores = torch.mul(tanh, self.softcap * _LOG2_E, out=scores)
        bias = product.bias if self.window is None else self._windowed(product, self.window)
        if bias is not None:
            batch, rows = product.rows.shape
            by_head = scores.view(batch, -1, rows, scores.shape[-1])
            by_head[..., -bias.shape[-1] :] += bias
        return scores, tanh

    def _windowed(self, product: Product, window: int) -> Tensor:
        """The bias from the definition; a window makes it too large to keep."""
        forest, rows, keys = self.forest, product.rows[:, :, None], product.keys[:, None, :]
        position = torch.cat([forest.prefix_position_ids, forest.position_ids])
        first, last = torch.cat([forest.prefix_first, forest.first]), torch.cat([forest.prefix_last, forest.last])
        near = (forest.position_ids[rows] - position[keys]).abs() < window
        if forest.bidirectional:
            near |= keys < forest.num_prefix_tokens
        visible = near & (first[keys] <= rows) & (rows < last[keys])
        if product.real_keys is not None:
            visible &= product.real_keys[:, None]
        return torch.zeros(visible.shape).masked_fill_(~visible, MASKED)[:, None]


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    forest: PromptForest,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp: out [S, Hq, D] of q's dtype, lse [S, Hq] float32 (float64 for float64)."""
    plan = plan_of(forest, window, softcap, q.shape[1], k.shape[1])
    narrow, wide = _dtypes(q)
    scores = Scores(forest, plan.window, scale, softcap, wide)
    queries = _scratch.cast("queries", q, narrow)
    keys, values = _scratch.joined("keys", prefix_k, k, narrow), _scratch.joined("values", prefix_v, v, narrow)

    merged = bool(plan.shared) or sinks is not None
    out = torch.empty(q.shape, dtype=wide if merged else narrow)
    lse = torch.empty(q.shape[:2], dtype=wide)
    for product in plan.own:
        part, part_lse = _attend(product, queries, keys, values, scores)
        out.index_copy_(0, product.row_ids, part.to(out.dtype))
        lse.index_copy_(0, product.row_ids, part_lse)
    for rows, own in _flash_spans(plan, forest):
        part, part_lse = _flash(
            *(_heads_first(x) for x in (queries[rows], keys[own], values[own])),
            is_causal=not forest.bidirectional,
            scale=scale,
        )
        out[rows] = part[0].transpose(0, 1)
        lse[rows] = part_lse[0].T
    for product in plan.shared:
        part, part_lse = _attend(product, queries, keys, values, scores)
        before = lse.index_select(0, product.row_ids)
        after = torch.logaddexp(before, part_lse)
        total = out.index_select(0, product.row_ids) * (before - after).exp_()[..., None]
        total += part.to(wide) * (part_lse - after).exp_()[..., None]
        out.index_copy_(0, product.row_ids, total)
        lse.index_copy_(0, product.row_ids, after)
    if plan.window is not None:
        blind = lse < MASKED / 2  # rows whose window holds no key
        out.masked_fill_(blind[..., None], 0)
        lse.masked_fill_(blind, -torch.inf)
    if sinks is not None:
        after = torch.logaddexp(lse, sinks.to(wide))
        out *= (lse - after).exp_()[..., None]
        lse = after
    lse.masked_fill_(lse == -torch.inf, torch.inf)  # so that exp(score - lse) is 0 in backward
    return out.to(q.dtype), lse


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    forest: PromptForest,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v, prefix_k, prefix_v and sinks; None where `needs` says that nobody asks."""
    plan = plan_of(forest, window, softcap, q.shape[1], k.shape[1])
    narrow, wide = _dtypes(q)
    scores = Scores(forest, plan.window, scale, softcap, wide)
    queries, grads = _scratch.cast("queries", q, narrow), _scratch.cast("grads", grad, narrow)
    keys, values = _scratch.joined("keys", prefix_k, k, narrow), _scratch.joined("values", prefix_v, v, narrow)
    wide_grad, wide_out = _scratch.cast("wide grad", grad, wide), _scratch.cast("wide out", out, wide)
    delta = torch.mul(wide_grad, wide_out, out=_scratch.take("delta", q.shape, wide)).sum(-1)

    dq = torch.zeros(q.shape, dtype=wide if plan.shared else narrow) if needs[0] else None
    dk = _zeros("dk", keys.shape, wide, q.dtype) if needs[1] or needs[3] else None
    dv = _zeros("dv", values.shape, wide, q.dtype) if needs[2] or needs[4] else None
    asked = any(needs[:5])
    for product in [*plan.own, *plan.shared] if asked else []:
        _add_gradients(product, queries, keys, values, grads, lse, delta, scores, dq, dk, dv)
    for rows, own in _flash_spans(plan, forest):
        parts = _flash_backward(
            *(_heads_first(x) for x in (grads[rows], queries[rows], keys[own], values[own], out.to(narrow)[rows])),
            lse[rows].T[None].contiguous(),
            0.0,
            not forest.bidirectional,
            scale=scale,
        )
        for total, span, part in zip((dq, dk, dv), (rows, own, own), parts, strict=True):
            if total is not None:
                total[span] += part[0].transpose(0, 1)

    dsinks = None
    if sinks is not None and needs[5]:
        dsinks = -(delta * (sinks.to(wide) - lse).exp()).sum(0).to(sinks.dtype)
    offset = forest.num_prefix_tokens
    spans = [
        (dq, slice(0, None), needs[0]),
        (dk, slice(offset, None), needs[1]),
        (dv, slice(offset, None), needs[2]),
        (dk, slice(0, offset), needs[3]),
        (dv, slice(0, offset), needs[4]),
    ]
    inputs = [total[span].to(q.dtype, copy=span != slice(0, None)) if total is not None and need else None for total, span, need in spans]
    return (*inputs, dsinks)


def _attend(product: Product, q: Tensor, k: Tensor, v: Tensor, scores: Scores) -> tuple[Tensor, Tensor]:
    """Softmax over the product's keys alone: [n, Hq, D] and its log-sum-exp [n, Hq] for the product's real rows."""
    batch, heads = k.shape[1] * len(product.rows), q.shape[1]
    weights, _ = scores.of(product, _rows("q", q, product, batch), _keys("k", k, product, batch))
    peak = weights.amax(-1, keepdim=True)
    total = weights.sub_(peak).exp2_().sum(-1, keepdim=True)
    weights = _scratch.cast("weights", weights.div_(total), q.dtype)
    out = _scratch.product("product", weights, _keys("v", v, product, batch))
    lse = peak.div_(_LOG2_E).add_(total.log_())
    packed = _scratch.heads("out", out, product.pack_rows).view(-1, heads, q.shape[-1])
    return packed, _scratch.heads("lse", lse, product.pack_rows).view(-1, heads)


def _add_gradients(
    product: Product,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    lse: Tensor,
    delta: Tensor,
    scores: Scores,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
) -> None:
    """Add what this product contributes to the gradients of all rows and of all keys."""
    batch = k.shape[1] * len(product.rows)
    q_rows, grad_rows = _rows("q", q, product, batch), _rows("grad", grad, product, batch)
    k_rows = _keys("k", k, product, batch)
    weights, tanh = scores.of(product, q_rows, k_rows)
    row_lse = _rows("lse", lse[..., None], product, batch)
    if product.padding is not None:
        row_lse.view(len(product.rows), -1, product.rows.shape[1]).masked_fill_(product.padding, torch.inf)
    weights = weights.sub_(row_lse.mul_(_LOG2_E)).exp2_()
    if dv is not None:
        narrow = _scratch.cast("weights", weights, q.dtype)
        _add_keys(dv, _scratch.product("product", narrow.transpose(1, 2), grad_rows), product)
    if dq is None and dk is None:
        return

    slopes = _scratch.product("slopes", grad_rows, _keys("v", v, product, batch).transpose(1, 2))
    slopes = _scratch.cast("slopes", slopes, scores.dtype)
    slopes = slopes.sub_(_rows("row delta", delta[..., None], product, batch)).mul_(weights)
    if tanh is not None:
        slopes.addcmul_(slopes, tanh.square_(), value=-1)
    slopes = _scratch.cast("slopes", slopes, q.dtype)
    if dq is not None:
        part = _scratch.product("product", slopes, k_rows, scores.scale)
        part = _scratch.heads("dq", part, product.pack_rows).view(-1, *dq.shape[1:])
        dq.index_add_(0, product.row_ids, _scratch.cast("cast", part, dq.dtype))
    if dk is not None:
        _add_keys(dk, _scratch.product("product", slopes.transpose(1, 2), q_rows, scores.scale), product)


def _add_keys(total: Tensor, part: Tensor, product: Product) -> None:
    """Add part [B * Hkv, K, D] to the keys' gradients [N, Hkv, D]; common keys sum over B first, in a fixed order."""
    common = product.common
    if common:
        by_group = part.view(len(product.keys), -1, *part.shape[1:])
        shared = by_group[:, :, :common].sum(0, dtype=total.dtype).transpose(0, 1)
        total.index_add_(0, product.keys[0, :common], shared)
    own = _scratch.heads("own", part, product.pack_keys).view(-1, *total.shape[1:])
    total.index_add_(0, product.key_ids, _scratch.cast("cast", own, total.dtype))


def _rows(name: str, x: Tensor, product: Product, batch: int) -> Tensor:
    """x [S, Hkv * G, D] -> [B * Hkv, G * L, D]: the query heads of a KV head share one product."""
    return _scratch.heads(name, x, product.group_rows).view(batch, -1, x.shape[-1])


def _keys(name: str, x: Tensor, product: Product, batch: int) -> Tensor:
    """x [N, Hkv, D] -> [B * Hkv, K, D]."""
    return _scratch.heads(name, x, product.group_keys).view(batch, -1, x.shape[-1])


def _zeros(name: str, shape: Sequence[int], dtype: torch.dtype, returned: torch.dtype) -> Tensor:
    """A sum that starts at zero; a fresh tensor only if it is returned as it is."""
    return torch.zeros(shape, dtype=dtype) if dtype == returned else _scratch.take(name, shape, dtype).zero_()


def _flash_spans(plan: Plan, forest: PromptForest) -> list[tuple[slice, slice]]:
    offset = forest.num_prefix_tokens
    return [(slice(first, last), slice(first + offset, last + offset)) for first, last in plan.flash]


def _heads_first(x: Tensor) -> Tensor:
    """[L, H, D] -> [1, H, L, D]."""
    return x.transpose(0, 1)[None]


def _dtypes(q: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """Of matrix products, and of sums and exponentials. bf16 products where the processor has them, fp16 ones never."""
    if q.dtype == torch.float64:
        return torch.float64, torch.float64
    if q.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.bfloat16, torch.float32
    return torch.float32, torch.float32
