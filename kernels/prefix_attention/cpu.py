"""The CPU backend: forward and backward over the products of a plan, stage by stage.

Scores stand transposed, [keys, rows]: what is done per row runs along memory, and the matrix products like it better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cpu_plan import MASKED, Product, Stage, plan_of, visible
from .cpu_scratch import Scratch, Views
from .forest import PromptForest

_LOG2_E = math.log2(math.e)
_scratch = Scratch()


@dataclass(frozen=True)
class Scores:
    """How a score is made from k . q: softcap, then the mask; keys come scaled. In units of log 2, for exp2 is the fast one."""

    forest: PromptForest
    window: int | None
    softcap: float | None

    def finish(self, product: Product, at: Views) -> Tensor | None:
        """Turn the products of keys and rows in at.weights into scores in at.wide_weights; tanh where there is a softcap."""
        scores, tanh = at.wide_weights, None
        if scores is not at.weights:
            scores.copy_(at.weights)
        if self.softcap is not None:
            tanh = scores.tanh()
            torch.mul(tanh, self.softcap * _LOG2_E, out=scores)
        at.masked.add_(self._windowed(product) if product.bias is None else product.bias)
        return tanh

    def _windowed(self, product: Product) -> Tensor:
        """The bias from the definition; a window makes it too large to keep."""
        forest, rows, keys = self.forest, product.rows[:, None], product.keys[..., None]
        position = torch.cat([forest.prefix_position_ids, forest.position_ids])
        first, last = torch.cat([forest.prefix_first, forest.first]), torch.cat([forest.prefix_last, forest.last])
        assert self.window is not None  # without one the plan has the bias
        near = (forest.position_ids[rows] - position[keys]).abs() < self.window
        if forest.bidirectional:
            near |= keys < forest.num_prefix_tokens
        seen = near & visible(first, last, product.rows, product.keys) & product.real_keys[..., None]
        return torch.zeros(seen.shape, dtype=torch.float32).masked_fill_(~seen, MASKED)[:, None, :, None]


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
    plan = plan_of(forest, window, q.shape[1], k.shape[1])
    narrow, wide = _dtypes(q)
    scores = Scores(forest, plan.window, softcap)
    queries = _scratch.cast("queries", q, narrow)
    keys = _scaled_keys(k, v, prefix_k, prefix_v, scale * _unit(softcap), narrow)
    sink = None if sinks is None else sinks.to(wide).mul(_LOG2_E).view(1, k.shape[1], -1, 1)
    out, lse = torch.empty(q.shape, dtype=narrow), torch.empty(q.shape[:2], dtype=wide)
    for stage in plan:
        space = _scratch.workspace(stage, narrow, wide, q.shape[2])
        rows = _heads(queries[stage.rows])
        for product, at in zip(stage.products, space.products, strict=True):
            torch.index_select(rows, 0, product.group_rows, out=at.q_rows)
            torch.index_select(keys, 0, product.group_keys, out=at.kv_rows)
            torch.bmm(at.k, at.q_t, out=at.weights)
            scores.finish(product, at)
            weights = at.wide_weights
            torch.amax(weights, 1, keepdim=True, out=at.peaks)
            if sink is not None:
                peaks = _by_head(at.peaks, product)
                peaks.copy_(torch.maximum(peaks, sink))
            torch.sum(weights.sub_(at.peaks).exp2_(), 1, keepdim=True, out=at.totals)
            if sink is not None:
                _by_head(at.totals, product).add_((sink - peaks).exp2_())
            if plan.window is not None:  # a window without keys gives 0, and its exp(score - lse) is 0 in backward
                at.totals.masked_fill_(at.peaks < MASKED / 2, torch.inf)
            weights.div_(at.totals)
            if weights is not at.weights:
                at.weights.copy_(weights)
            torch.bmm(at.weights_t, at.v, out=at.parts)
        torch.index_select(space.parts, 0, stage.places, out=_heads(out[stage.rows]))
        part_lse = space.totals.log2_().add_(space.peaks).div_(_LOG2_E)
        torch.index_select(part_lse, 0, stage.places, out=lse[stage.rows].view(-1))
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
    plan = plan_of(forest, window, q.shape[1], k.shape[1])
    narrow, wide = _dtypes(q)
    scores = Scores(forest, plan.window, softcap)
    queries, grads = _scratch.cast("queries", q, narrow), _scratch.cast("grads", grad, narrow)
    keys = _scaled_keys(k, v, prefix_k, prefix_v, scale * _unit(softcap), narrow)
    dq = torch.empty(q.shape, dtype=narrow) if needs[0] else None
    key_grads = None if len(plan) == 1 else torch.zeros(2, keys.shape[0] // 2, keys.shape[1], dtype=wide)
    for stage in plan if any(needs[:5]) else ():
        space = _scratch.workspace(stage, narrow, wide, q.shape[2])
        rows, grad_rows = _heads(queries[stage.rows]), _heads(grads[stage.rows])
        row_lse = torch.cat([lse[stage.rows].flatten(), lse.new_full((1,), torch.inf)]).mul_(_LOG2_E)
        torch.index_select(row_lse, 0, stage.group_rows, out=space.peaks)  # infinite in padding: its weights are 0
        for product, at in zip(stage.products, space.products, strict=True):
            torch.index_select(rows, 0, product.group_rows, out=at.q_rows)
            torch.index_select(grad_rows, 0, product.group_rows, out=at.grad_rows)
            torch.index_select(keys, 0, product.group_keys, out=at.kv_rows)
            torch.bmm(at.k_v, at.q_grad_t, out=at.weights_grad_weights)
            tanh = scores.finish(product, at)
            weights = at.wide_weights.sub_(at.peaks).exp2_()
            if weights is not at.weights:
                at.weights.copy_(weights)
            torch.ops.aten._softmax_backward_data.out(at.grad_weights, at.weights, 1, narrow, grad_input=at.slopes)
            if tanh is not None:
                at.slopes.mul_(tanh.square_().neg_().add_(1))
            torch.bmm(at.slopes_weights, at.q_grad, out=at.key_parts)
            if dq is not None:
                torch.baddbmm(at.parts, at.slopes_t, at.k, beta=0, alpha=1 / _unit(softcap), out=at.parts)
        if dq is not None:
            torch.index_select(space.parts, 0, stage.places, out=_heads(dq[stage.rows]))
        key_grads = _add_keys(key_grads, stage, space.key_parts)

    dsinks = None
    if sinks is not None and needs[5]:
        delta = (grad.to(wide) * out.to(wide)).sum(-1)
        dsinks = -(delta * (sinks.to(wide) - lse).exp()).sum(0).to(sinks.dtype)
    found = [None if dq is None else dq.to(q.dtype)]
    prefix, tokens = slice(0, forest.num_prefix_tokens), slice(forest.num_prefix_tokens, None)
    for number, part in ((0, tokens), (1, tokens), (0, prefix), (1, prefix)):
        if key_grads is None or not needs[len(found)]:
            found.append(None)
        else:
            found.append(key_grads.view(2, -1, *k.shape[1:])[number, part].mul(1 if number else scale).to(q.dtype))
    return (*found, dsinks)


def _add_keys(total: Tensor | None, stage: Stage, copies: Tensor) -> Tensor:
    """Sum the gradients of the copies of each key, in their order; add them to those [2, N * Hkv, D] of earlier stages."""
    by_key = torch.embedding_bag(copies, stage.copies, stage.copy_ends, include_last_offset=True)[0]
    by_key = by_key.view(2, -1, copies.shape[1])
    if total is None:
        return by_key
    assert stage.key_ids is not None  # only a plan of one stage meets all keys in it
    return total.index_add_(1, stage.key_ids, by_key.to(total.dtype))


def _heads(x: Tensor) -> Tensor:
    """x [n, heads, D] -> [n * heads, D]."""
    return x.view(-1, x.shape[2])


def _by_head(x: Tensor, product: Product) -> Tensor:
    """x [B * Hkv, 1, G * L] -> [B, Hkv, G, L]."""
    return x.view(product.tiles, product.kv_heads, -1, product.rows.shape[1])


def _unit(softcap: float | None) -> float:
    """What q . k is multiplied by beside the scale, before anything else happens to it."""
    return _LOG2_E if softcap is None else 1 / softcap


def _scaled_keys(k: Tensor, v: Tensor, prefix_k: Tensor | None, prefix_v: Tensor | None, factor: float, dtype: torch.dtype) -> Tensor:
    """Single heads of [prefix keys | token keys | prefix values | token values]: [2 * N * Hkv, D]; keys times a factor."""
    prefix = 0 if prefix_k is None else prefix_k.shape[0]
    both = _scratch.take("keys", (2, prefix + k.shape[0], *k.shape[1:]), dtype)
    for half, first, second in ((both[0], prefix_k, k), (both[1], prefix_v, v)):
        if first is not None:
            half[:prefix] = first
        half[prefix:] = second
    both[0].mul_(factor)
    return both.view(-1, k.shape[2])


def _dtypes(q: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """Of matrix products, and of sums and exponentials. bf16 products where the processor has them, fp16 ones never."""
    if q.dtype == torch.float64:
        return torch.float64, torch.float64
    if q.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.bfloat16, torch.float32
    return torch.float32, torch.float32
