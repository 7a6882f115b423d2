"""Random forests, random inputs and the error rule that every backend is held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from prefix_attention import PromptForest, prefix_attention
from prefix_attention.reference import dense_attention
from torch import Tensor

ATOL = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@dataclass
class Case:
    """One call of prefix_attention: inputs that require grad, the rest of its arguments, and a gradient to push back."""

    forest: PromptForest
    inputs: dict[str, Tensor]
    options: dict[str, float | int | None]
    grad: Tensor

    def results(self, attention: Callable[..., Tensor]) -> dict[str, Tensor]:
        """The output and the gradient of every input, by name."""
        out = attention(forest=self.forest, **self.inputs, **self.options)
        grads = torch.autograd.grad(out, list(self.inputs.values()), self.grad.to(out.dtype))
        return {"out": out.detach(), **dict(zip(self.inputs, grads, strict=True))}

    def to(self, dtype: torch.dtype) -> Case:
        inputs = {name: x.detach().to(dtype).requires_grad_() for name, x in self.inputs.items()}
        return Case(self.forest, inputs, self.options, self.grad.to(dtype))


@st.composite
def forests(draw: st.DrawFn, longest: int = 24, segments: int = 10) -> PromptForest:
    """Trees of any depth, several roots, ragged external prefixes, empty segments."""
    count = draw(st.integers(1, segments))
    lengths = draw(st.lists(st.integers(0, longest), min_size=count, max_size=count))
    parents: list[int] = []
    path: list[int] = []
    for segment in range(count):
        path = path[: draw(st.integers(0, len(path)))]
        parents.append(path[-1] if path else -1)
        path.append(segment)
    prefix_lengths = draw(st.lists(st.integers(0, longest), max_size=3))
    prefixes, current = [-1] * count, 0
    for root in (segment for segment in range(count) if parents[segment] == -1):
        current += draw(st.integers(0, 1))
        if current < len(prefix_lengths) and draw(st.booleans()):
            prefixes[root] = current
        else:
            current += 1
    return PromptForest.from_segments(lengths, parents, draw(st.booleans()), prefix_lengths, prefixes)


@st.composite
def cases(draw: st.DrawFn, dims: tuple[int, ...] = (4, 16, 24), longest: int = 24, segments: int = 10) -> Case:
    """Float64 calls; `Case.to` gives the same call in another precision."""
    forest = draw(forests(longest, segments))
    kv_heads, group, dim = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 3])), draw(st.sampled_from(dims))
    options = {
        "scale": draw(st.sampled_from([None, 0.4])),
        "window": draw(st.sampled_from([None, None, 0, 1, 5, 20])),
        "softcap": draw(st.sampled_from([None, None, 1.5])),
    }
    return make_case(forest, kv_heads, group, dim, options, sinks=draw(st.booleans()), seed=draw(st.integers(0, 1 << 30)))


def make_case(
    forest: PromptForest,
    kv_heads: int,
    group: int,
    dim: int,
    options: dict[str, float | int | None] | None = None,
    sinks: bool = False,
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    rows, prefix, heads = forest.num_tokens, forest.num_prefix_tokens, kv_heads * group
    inputs = {
        "q": normal(rows, heads, dim),
        "k": normal(rows, kv_heads, dim),
        "v": normal(rows, kv_heads, dim),
        "prefix_k": normal(prefix, kv_heads, dim),
        "prefix_v": normal(prefix, kv_heads, dim),
    }
    if sinks:
        inputs["sinks"] = normal(heads)
    inputs = {name: x.requires_grad_() for name, x in inputs.items()}
    return Case(forest, inputs, options or {}, normal(rows, heads, dim))


def assert_within_the_error_rule(case: Case, backend: str, dtype: torch.dtype) -> None:
    """At most twice the error of a dense torch computation in the same precision, plus ATOL, against float64."""
    case = case.to(dtype)

    def dense(**arguments: Tensor) -> Tensor:
        return dense_attention(**arguments, dtype=dtype)

    found = case.results(lambda **arguments: prefix_attention(**arguments, backend=backend))
    same_precision = case.results(dense)
    exact = case.to(torch.float64).results(dense_attention)
    for name, value in exact.items():
        error = (found[name].double() - value).abs()
        allowed = 2 * (same_precision[name].double() - value).abs().amax() if value.numel() else 0
        assert found[name].dtype == dtype
        bound = allowed + ATOL[dtype] * max(1.0, value.abs().max().item() if value.numel() else 0.0)
        assert (error <= bound).all(), f"{name}: error {error.max():.2e}, allowed {bound:.2e}, {case.forest}"
