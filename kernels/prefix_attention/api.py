"""The public call: checks its arguments, chooses a backend, runs it."""

from __future__ import annotations

import torch
from torch import Tensor

from .cpu import weights_to_keep
from .forest import PromptForest
from .operator import attention, triton_complaint
from .reference import dense_attention

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def prefix_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    forest: PromptForest,
    prefix_k: Tensor | None = None,
    prefix_v: Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Exact attention over a prompt forest, differentiable in q, k, v, prefix_k, prefix_v and sinks.

    Every row attends to the external prefix of its tree, to its ancestors and to its own segment (causally, or as a
    whole in a bidirectional forest), as if each path were a sequence of its own. A shared prefix is read once, not once
    per example (Li & Liang 2021 for the prefix; Dao 2023 for the online softmax; Juravsky et al. 2024 for the split
    into shared and own keys).

    q: [S, Hq, D] with S = forest.num_tokens. k, v: [S, Hkv, D], Hq a multiple of Hkv. prefix_k, prefix_v:
    [sum(prefix_lengths), Hkv, D], needed if the forest has external prefixes. All of one dtype (float32, float16,
    bfloat16, float64) and one device, the forest's.
    scale: of q . k, default D ** -0.5. window: attend to path distance < window. softcap: scores become
    softcap * tanh(score / softcap). sinks: [Hq] logits that take weight and give nothing (GPT-OSS).
    backend: "cpu", "triton" or "reference" (dense, float64); default by device.

    Returns [S, Hq, D] in the dtype of q; zeros in a row that sees no key. Raises ValueError, naming the argument, if
    shapes, dtypes or devices do not fit or the backend cannot run here.
    """
    _check_tensors(q, k, v, forest, prefix_k, prefix_v, sinks)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if window is not None and window < 0:
        raise ValueError(f"window is {window}: use a number of tokens, 0 or more, or None for no window")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap is {softcap}: use a positive number, or None for no cap")
    backend = _chosen_backend(backend, q)
    if backend == "reference":
        return dense_attention(q, k, v, forest, prefix_k, prefix_v, scale, window, softcap, sinks).to(q.dtype)
    kept = 0  # in compiled code too: how many there are belongs to a batch
    if backend == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        kept = weights_to_keep(q, k, v, forest, prefix_k, prefix_v, window, softcap)
    out: Tensor = attention(q, k, v, forest.layout, prefix_k, prefix_v, sinks, scale, window, softcap, backend, kept)[0]
    if not torch.compiler.is_compiling() and out.grad_fn is not None:
        # The backward pass finds what was planned for the forest only while it lives, and the caller may drop it before.
        out.grad_fn.metadata["forest"] = forest  # type: ignore[index]
    return out


def _check_tensors(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    forest: PromptForest,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    sinks: Tensor | None,
) -> None:
    if not isinstance(forest, PromptForest):
        raise ValueError(f"forest is a {type(forest).__name__}: build it with PromptForest.from_segments")
    rows, prefix_rows = forest.num_tokens, forest.num_prefix_tokens
    if q.ndim != 3 or q.shape[0] != rows:
        raise ValueError(f"q has shape {list(q.shape)}: needed is [{rows}, Hq, D], one row per token of the forest")
    if q.dtype not in _DTYPES:
        raise ValueError(f"q has dtype {q.dtype}: needed is one of {', '.join(map(str, _DTYPES))}")
    heads, dim = q.shape[1:]
    if k.ndim != 3 or k.shape[0] != rows or k.shape[2] != dim:
        raise ValueError(f"k has shape {list(k.shape)}: needed is [{rows}, Hkv, {dim}]")
    kv_heads = k.shape[1]
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"q has {heads} heads and k has {kv_heads}: the first must be a multiple of the second")
    if (prefix_k is None or prefix_v is None) and prefix_rows:
        name = "prefix_k" if prefix_k is None else "prefix_v"
        raise ValueError(f"{name} is missing: the forest has external prefixes of {prefix_rows} tokens in all")
    expected = {
        "k": (k, [rows, kv_heads, dim]),
        "v": (v, [rows, kv_heads, dim]),
        "prefix_k": (prefix_k, [prefix_rows, kv_heads, dim]),
        "prefix_v": (prefix_v, [prefix_rows, kv_heads, dim]),
        "sinks": (sinks, [heads]),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if list(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}: needed is {shape}")
        if tensor.dtype != q.dtype and name != "sinks":
            raise ValueError(f"{name} has dtype {tensor.dtype}, q has {q.dtype}: cast one of them")
        if tensor.device != q.device:
            raise ValueError(f"{name} is on {tensor.device}, q is on {q.device}: move one of them")
    if forest.device != q.device:
        raise ValueError(f"forest is on {forest.device}, q is on {q.device}: use forest.to({str(q.device)!r})")


def _chosen_backend(backend: str | None, q: Tensor) -> str:
    if backend is None:
        backend = "triton" if q.device.type == "cuda" else "cpu"
    if backend not in ("cpu", "triton", "reference"):
        raise ValueError(f"backend is {backend!r}: use 'cpu', 'triton', 'reference' or None for the device's own")
    if backend == "cpu" and q.device.type != "cpu":
        raise ValueError(f"backend is 'cpu', but q is on {q.device}: move the tensors or leave backend out")
    if backend == "triton":
        complaint = triton_complaint(q)
        if complaint:
            raise ValueError(f"backend is 'triton', but {complaint}")
    return backend
