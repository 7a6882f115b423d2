"""The CPU backend: forward and backward over the products of a plan, stage by stage.

Scores stand transposed, [keys, rows]: what is done per row runs along memory, and the matrix products like it better.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .cpu_plan import MASKED, Plan, Product, Stage, plan_of
from .cpu_scratch import Scratch, Views, Workspace
from .forest import PromptForest

_LOG2_E = math.log2(math.e)
_WEIGHTS = 1 << 24  # bytes of softmax weights that a call leaves for its backward at most
_scratch = Scratch()


def dtypes(q: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """Of matrix products, and of sums and exponentials. bf16 products where the processor has them, fp16 ones never."""
    if q.dtype == torch.float64:
        return torch.float64, torch.float64
    if q.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.bfloat16, torch.float32
    return torch.float32, torch.float32


def weights_to_keep(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    forest: PromptForest,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    window: int | None,
    softcap: float | None,
) -> int:
    """How many softmax weights `forward` should leave for `backward`: all, where gradients are asked for and these are few."""
    if softcap is not None or not any(x is not None and x.requires_grad for x in (q, k, v, prefix_k, prefix_v)):
        return 0
    plan = plan_of(forest, window, q.shape[1], k.shape[1])
    return plan.scores if len(plan) == 1 and plan.scores * dtypes(q)[0].itemsize <= _WEIGHTS else 0


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
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp: out [S, Hq, D] of q's dtype, lse [S, Hq] float32 (float64 for float64).

    weights: [`weights_to_keep`], filled for `backward`.
    """
    call = _Call.of(q, k, v, forest, prefix_k, prefix_v, scale, window, softcap)
    sink = None if sinks is None else sinks.to(call.wide).mul(_LOG2_E).view(1, k.shape[1], -1, 1)
    out, lse = torch.empty(q.shape, dtype=call.narrow), torch.empty(q.shape[:2], dtype=call.wide)
    for stage, space in call.stages():
        rows = call.rows("queries", q, stage)
        for product, at, kept in zip(stage.products, space.products, _split(weights, stage), strict=True):
            torch.index_select(rows, 0, product.group_rows, out=at.q.flat)
            call.attend(product, at, sink, kept)
        torch.index_select(space.parts, 0, stage.places, out=out[stage.rows].view(-1, q.shape[2]))
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
    weights: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v, prefix_k, prefix_v and sinks; None where `needs` says that nobody asks. weights: of `forward`."""
    call = _Call.of(q, k, v, forest, prefix_k, prefix_v, scale, window, softcap)
    dq = torch.empty(q.shape, dtype=call.narrow) if needs[0] else None
    dk = call.no_gradients() if needs[1] or needs[3] else None
    dv = call.no_gradients() if needs[2] or needs[4] else None
    for stage, space in call.stages() if any(needs[:5]) else ():
        rows, grad_rows = call.rows("queries", q, stage), call.rows("grads", grad, stage)
        if weights is None:
            row_lse = torch.cat([lse[stage.rows].flatten(), lse.new_full((1,), torch.inf)]).mul_(_LOG2_E)
            torch.index_select(row_lse, 0, stage.group_rows, out=space.peaks)  # infinite in padding: its weights are 0
        for product, at, kept in zip(stage.products, space.products, _split(weights, stage), strict=True):
            torch.index_select(rows, 0, product.group_rows, out=at.q.flat)
            torch.index_select(grad_rows, 0, product.group_rows, out=at.grad.flat)
            call.differentiate(product, at, kept, dq is not None, dk is not None, dv is not None)
        if dq is not None:
            torch.index_select(space.parts, 0, stage.places, out=dq[stage.rows].view(-1, q.shape[2]))
        dk = None if dk is None else _add_keys(dk, stage, space.dk)
        dv = None if dv is None else _add_keys(dv, stage, space.dv)

    dsinks = None
    if sinks is not None and needs[5]:
        delta = (grad.to(call.wide) * out.to(call.wide)).sum(-1)
        dsinks = -(delta * (sinks.to(call.wide) - lse).exp()).sum(0).to(sinks.dtype)
    prefix, tokens = slice(0, forest.num_prefix_tokens), slice(forest.num_prefix_tokens, None)
    return (
        None if dq is None else dq.to(q.dtype),
        *(
            None if total is None or not asked else total.view(-1, *k.shape[1:])[part].to(q.dtype, copy=True)
            for total, part, asked in zip((dk, dv, dk, dv), (tokens, tokens, prefix, prefix), needs[1:5], strict=True)
        ),
        dsinks,
    )


@dataclass(frozen=True)
class _Call:
    """What forward and backward have in common. Scores are in units of log 2, for exp2 is the fast one."""

    plan: Plan
    keys: Tensor  # [prefix keys | token keys], single heads below one another: [N * Hkv, D]
    values: Tensor
    scale: float
    softcap: float | None
    narrow: torch.dtype  # of matrix products
    wide: torch.dtype  # of sums and exponentials

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        forest: PromptForest,
        prefix_k: Tensor | None,
        prefix_v: Tensor | None,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> _Call:
        narrow, wide = dtypes(q)
        keys, values = _joined("keys", prefix_k, k, narrow), _joined("values", prefix_v, v, narrow)
        return cls(plan_of(forest, window, q.shape[1], k.shape[1]), keys, values, scale, softcap, narrow, wide)

    def stages(self) -> Iterator[tuple[Stage, Workspace]]:
        for stage in self.plan:
            yield stage, _scratch.workspace(stage, self.narrow, self.wide, self.keys.shape[1])

    def rows(self, name: str, x: Tensor, stage: Stage) -> Tensor:
        """The stage's rows of x [S, Hq, D], single heads below one another."""
        return _scratch.cast(name, x[stage.rows], self.narrow).view(-1, x.shape[2])

    def no_gradients(self) -> Tensor:
        """Of keys or values, to be added to; empty if they will come in one piece."""
        return self.keys.new_zeros(self.keys.shape if len(self.plan) != 1 else (0,), dtype=self.wide)

    def attend(self, product: Product, at: Views, sink: Tensor | None, kept: Tensor | None) -> None:
        """Softmax over all keys of each gathered row: at.parts, at.peaks and at.totals, and the weights in `kept`, 0 in padding."""
        self._gather_keys(product, at)
        self._score(product, at)
        weights, peaks, totals = at.scores.batch, at.peaks, at.totals
        torch.amax(weights, 1, keepdim=True, out=peaks)
        by_head = peaks.view(product.tiles, product.kv_heads, -1, product.rows.shape[1])
        if sink is not None:
            by_head.copy_(torch.maximum(by_head, sink))
        torch.sum(weights.sub_(peaks).exp2_(), 1, keepdim=True, out=totals)
        if sink is not None:
            totals.view(by_head.shape).add_((sink - by_head).exp2_())
        if self.plan.window is not None:  # a window without keys gives 0, and its exp(score - lse) is 0 in backward
            totals.masked_fill_(peaks < MASKED / 2, torch.inf)
        if kept is not None:
            totals.view(-1).index_fill_(0, product.padding, torch.inf)
        narrow = at.narrow.batch if kept is None else kept
        if narrow.dtype == weights.dtype:
            torch.div(weights, totals, out=narrow)
        else:
            narrow.copy_(weights.div_(totals))
        torch.bmm(narrow.transpose(1, 2), at.v.batch, out=at.parts.batch)

    def differentiate(self, product: Product, at: Views, weights: Tensor | None, wants_q: bool, wants_k: bool, wants_v: bool) -> None:
        """From gathered rows, their gradients and the weights that `attend` kept: at.parts (of q), at.dk and at.dv.

        Without these, weights come from log-sum-exps in at.peaks.
        """
        self._gather_keys(product, at)
        tanh = None
        if weights is None:
            tanh = self._score(product, at)
            at.scores.batch.sub_(at.peaks).exp2_()
            weights = at.narrow.batch
            if at.narrow is not at.scores:
                weights.copy_(at.scores.batch)
        if wants_v:
            torch.bmm(weights, at.grad.batch, out=at.dv.batch)
        if not (wants_q or wants_k):
            return
        slopes = torch.bmm(at.v.batch, at.grad.turned, out=at.slopes.batch)
        torch.ops.aten._softmax_backward_data.out(slopes, weights, 1, self.narrow, grad_input=slopes)
        if tanh is not None:
            slopes.mul_(tanh.square_().neg_().add_(1))
        if wants_q:
            _multiply(at.slopes.turned, at.k.batch, self.scale, at.parts.batch)
        if wants_k:
            _multiply(at.slopes.batch, at.q.batch, self.scale, at.dk.batch)

    def _gather_keys(self, product: Product, at: Views) -> None:
        torch.index_select(self.keys, 0, product.group_keys, out=at.k.flat)
        torch.index_select(self.values, 0, product.group_keys, out=at.v.flat)

    def _score(self, product: Product, at: Views) -> Tensor | None:
        """at.scores [B * Hkv, K, G * L] of all gathered rows and keys; tanh if there is a softcap."""
        unit = _LOG2_E if self.softcap is None else 1 / self.softcap
        _multiply(at.k.batch, at.q.turned, self.scale * unit, at.narrow.batch)
        scores, tanh = at.scores.batch, None
        if at.narrow is not at.scores:
            scores.copy_(at.narrow.batch)
        if self.softcap is not None:
            tanh = scores.tanh()
            torch.mul(tanh, self.softcap * _LOG2_E, out=scores)
        at.masked.add_(self.plan.bias(product))
        return tanh


def _split(weights: Tensor | None, stage: Stage) -> Sequence[Tensor | None]:
    """The weights of each product, [B * Hkv, K, G * L]."""
    if weights is None:
        return [None] * len(stage.products)
    parts = torch.split(weights, stage.scores)
    return [part.view(x.tiles * x.kv_heads, x.keys.shape[1], -1) for part, x in zip(parts, stage.products, strict=True)]


def _multiply(a: Tensor, b: Tensor, alpha: float, out: Tensor) -> None:
    """out = alpha * a @ b for batches of matrices."""
    torch.baddbmm(out, a, b, beta=0, alpha=alpha, out=out)


def _add_keys(total: Tensor, stage: Stage, copies: Tensor) -> Tensor:
    """Sum the gradients of the copies of each key, in their order; add them to total [N * Hkv, D] of earlier stages."""
    by_key, *_ = torch.embedding_bag(copies, stage.copies, stage.copy_ends, include_last_offset=True)
    return by_key if stage.key_ids is None else total.index_add_(0, stage.key_ids, by_key.to(total.dtype))


def _joined(name: str, prefix: Tensor | None, x: Tensor, dtype: torch.dtype) -> Tensor:
    """prefix [P, Hkv, D] and x [S, Hkv, D] as one, single heads below one another: [(P + S) * Hkv, D]."""
    if prefix is None:
        return _scratch.cast(name, x, dtype).view(-1, x.shape[2])
    both = _scratch.take(name, (prefix.shape[0] + x.shape[0], *x.shape[1:]), dtype)
    both[: prefix.shape[0]] = prefix
    both[prefix.shape[0] :] = x
    return both.view(-1, x.shape[2])
