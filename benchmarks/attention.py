"""How fast the attention step is, forward + backward, beside what one would use instead.

    python benchmarks/attention.py cpu      short and shared shapes, growth from 1k to 128k tokens
    python benchmarks/attention.py gpu      the shapes of a GPU, FlexAttention and FlashAttention as rivals

Everything runs in one process, rivals alternating with ours, medians of several pairs. Rivals get what suits them best:
padded inputs and masks are made beforehand, only the concatenation of the prefix is theirs to do.
"""

import argparse
import itertools
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from prefix_attention import PromptForest, prefix_attention
from prefix_attention.reference import dense_attention, visibility
from record import write_result
from torch import Tensor

Step = Callable[[], tuple[Tensor, ...]]


@dataclass
class Shape:
    """A forest behind external prefixes, and the same work as padded rows: for each row its prefix and its length."""

    name: str
    forest: PromptForest
    rows: list[tuple[int, int]]


def shared_prefix(name: str, prefix: int, lengths: list[int], prompts: int = 1) -> Shape:
    each = len(lengths) // prompts
    prefixes = [index // each for index in range(len(lengths))]
    forest = PromptForest.from_segments(lengths, [-1] * len(lengths), prefix_lengths=[prefix] * prompts, prefixes=prefixes)
    return Shape(name, forest, list(zip(prefixes, lengths, strict=True)))


def three_levels(prompt: int, texts: int, text: int, labels: int, label: int) -> Shape:
    lengths = ([text] + [label] * labels) * texts
    parents = [parent for t in range(texts) for parent in [-1] + [t * (labels + 1)] * labels]
    forest = PromptForest.from_segments(lengths, parents, prefix_lengths=[prompt])
    name = f"3 levels: prompt {prompt}, {texts} texts of {text}, {labels} labels of {label}"
    return Shape(name, forest, [(0, text + label)] * (texts * labels))


def between(low: int, high: int, count: int, seed: int = 0) -> list[int]:
    generator = random.Random(seed)
    return [generator.randint(low, high) for _ in range(count)]


def ours(shape: Shape, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, device: str) -> Step:
    forest = shape.forest.to(device)
    q, grad = (_normal((forest.num_tokens, heads, dim), dtype, device) for _ in range(2))
    k, v = (_normal((forest.num_tokens, kv_heads, dim), dtype, device) for _ in range(2))
    prefix_k, prefix_v = (_normal((forest.num_prefix_tokens, kv_heads, dim), dtype, device) for _ in range(2))
    inputs = [x.requires_grad_() for x in (q, k, v, prefix_k, prefix_v)]
    return lambda: torch.autograd.grad(prefix_attention(*inputs[:3], forest, *inputs[3:]), inputs, grad)


def padded_sdpa(shape: Shape, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, device: str) -> Step:
    """One row per example, padded to the longest; each row gets a copy of its prefix's keys and values."""
    sizes = shape.forest.segments.prefix_starts.diff().tolist()
    batch, longest, prefix = len(shape.rows), max(length for _, length in shape.rows), max(sizes)
    q, grad = (_normal((batch, heads, longest, dim), dtype, device) for _ in range(2))
    k, v = (_normal((batch, kv_heads, longest, dim), dtype, device) for _ in range(2))
    shared = [_normal((len(sizes), kv_heads, prefix, dim), dtype, device) for _ in range(2)]
    which = torch.tensor([number for number, _ in shape.rows], device=device)
    mask = torch.ones(longest, prefix + longest, dtype=torch.bool, device=device).tril(prefix)
    inputs = [x.requires_grad_() for x in (q, k, v, *shared)]

    def step() -> tuple[Tensor, ...]:
        prefixes = [x.expand(batch, -1, -1, -1) if len(sizes) == 1 else x[which] for x in shared]
        keys, values = (torch.cat([p, x], dim=2) for p, x in zip(prefixes, (k, v), strict=True))
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)
        return torch.autograd.grad(out, inputs, grad)

    return step


def dense_mask_sdpa(shape: Shape, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, device: str) -> Step:
    """Packed like ours, with a dense mask over all pairs."""
    forest = shape.forest
    mask = visibility(forest).to(device)
    q, grad = (_normal((1, heads, forest.num_tokens, dim), dtype, device) for _ in range(2))
    k, v = (_normal((1, kv_heads, forest.num_tokens, dim), dtype, device) for _ in range(2))
    shared = [_normal((1, kv_heads, forest.num_prefix_tokens, dim), dtype, device) for _ in range(2)]
    inputs = [x.requires_grad_() for x in (q, k, v, *shared)]

    def step() -> tuple[Tensor, ...]:
        keys, values = (torch.cat([p, x], dim=2) for p, x in zip(shared, (k, v), strict=True))
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)
        return torch.autograd.grad(out, inputs, grad)

    return step


def flex_attention(shape: Shape, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, device: str) -> Step:
    """FlexAttention, compiled, with a block mask that knows the shared prefix: the honest rival on a GPU."""
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as flex

    forest = shape.forest.to(device)
    first = torch.cat([forest.prefix_first, forest.first])
    last = torch.cat([forest.prefix_last, forest.last])

    def visible(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return (first[key] <= row) & (row < last[key])

    rows, keys = forest.num_tokens, len(first)
    blocks = torch.compile(create_block_mask)(visible, None, None, rows, keys, device=device)
    compiled = torch.compile(flex)
    q, grad = (_normal((1, heads, rows, dim), dtype, device) for _ in range(2))
    k, v = (_normal((1, kv_heads, keys, dim), dtype, device) for _ in range(2))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    return lambda: torch.autograd.grad(compiled(*inputs, block_mask=blocks, enable_gqa=True), inputs, grad)


def flash_varlen(shape: Shape, heads: int, kv_heads: int, dim: int, dtype: torch.dtype, device: str) -> Step:
    """FlashAttention over packed rows whose keys are the prefix's copy and the row's own."""
    from flash_attn import flash_attn_varlen_func

    sizes = shape.forest.segments.prefix_starts.diff().tolist()
    q_lengths = torch.tensor([length for _, length in shape.rows])
    k_lengths = q_lengths + torch.tensor([sizes[number] for number, _ in shape.rows])
    q_starts, k_starts = (F.pad(x.cumsum(0), (1, 0)).int().to(device) for x in (q_lengths, k_lengths))
    q, grad = (_normal((int(q_lengths.sum()), heads, dim), dtype, device) for _ in range(2))
    k, v = (_normal((int(k_lengths.sum()), kv_heads, dim), dtype, device) for _ in range(2))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    longest = (int(q_lengths.max()), int(k_lengths.max()))
    return lambda: torch.autograd.grad(flash_attn_varlen_func(*inputs, q_starts, k_starts, *longest, causal=True), inputs, grad)


def compare(steps: dict[str, Step], pairs: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of each step, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn, (name, step) in itertools.product(range(-2, pairs), steps.items()):
        _wait(device)
        start = time.perf_counter()
        step()
        _wait(device)
        if turn >= 0:
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def table_row(shape: Shape, dtype: torch.dtype, times: dict[str, list[float]], **more: float) -> dict[str, object]:
    medians = {name: round(statistics.median(values), 3) for name, values in times.items()}
    ratios = {name: round(median / medians["ours"], 2) for name, median in medians.items() if name != "ours"}
    text = "   ".join(f"{name} {median:.2f} ms" + (f" ({ratios[name]}x)" if name in ratios else "") for name, median in medians.items())
    print(f"{shape.name}, {str(dtype).removeprefix('torch.')}: {text}", *(f"{key} {value:.3f}" for key, value in more.items()))
    return {"shape": shape.name, "dtype": str(dtype), "ms": medians, "ratio": ratios, "runs": times, **more}


def cpu(pairs: int) -> None:
    shapes = [
        shared_prefix("P 100, 32 examples of 8-48", 100, between(8, 48, 32)),
        shared_prefix("P 20, 16 examples of 8-48", 20, between(8, 48, 16)),
        shared_prefix("P 100, 4 prompts x 16 examples of 8-48", 100, between(8, 48, 64), prompts=4),
        three_levels(50, 16, 30, 10, 3),
        shared_prefix("P 17, 16 examples of 75", 17, [75] * 16),
    ]
    rows = []
    for shape, dtype in itertools.product(shapes, (torch.float32, torch.bfloat16)):
        rivals = {"ours": ours, "padded SDPA": padded_sdpa, "dense mask": dense_mask_sdpa}
        steps = {name: build(shape, 8, 2, 64, dtype, "cpu") for name, build in rivals.items()}
        rows.append(table_row(shape, dtype, compare(steps, pairs, "cpu")))
    growth = [_in_own_process(tokens) for tokens in (1024, 4096, 16384, 65536, 131072)]
    for point in growth:
        print("{tokens} tokens: {ms:.1f} ms, {us_per_token:.2f} us a token, {mib:.0f} MiB above the inputs".format(**point))
    write_result("attention_cpu", {"heads": 8, "kv_heads": 2, "dim": 64, "rows": rows, "growth": growth})


def _in_own_process(tokens: int) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, "growth", str(tokens)], capture_output=True, text=True, check=True)
    point: dict[str, float] = json.loads(done.stdout)
    return point


def growth(tokens: int) -> None:
    """Time and peak memory of one step at a size, printed as JSON; a process of its own, for buffers live on in it."""
    lengths = [*between(8, 48, tokens // 28)]
    step = ours(shared_prefix("", 100, lengths), 8, 2, 64, torch.float32, "cpu")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is held now
    before = _peak_mib()
    ms = statistics.median(compare({"ours": step}, 5, "cpu")["ours"])
    print(json.dumps({"tokens": sum(lengths), "ms": ms, "us_per_token": 1e3 * ms / sum(lengths), "mib": _peak_mib() - before}))


def _peak_mib() -> float:
    """Of resident memory. Not getrusage: its peak is inherited from the process that started this one."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def gpu(pairs: int) -> None:
    if not torch.cuda.is_available():
        raise SystemExit("attention.py gpu: torch sees no CUDA or ROCm GPU here; use the cpu part, or run this on a machine with one")
    shapes = [
        shared_prefix("P 128, 16k tokens of 16-64", 128, between(16, 64, 410)),
        shared_prefix("P 128, 64k tokens of 16-64", 128, between(16, 64, 1640)),
        shared_prefix("16 prompts of 64, 16k tokens of 16-64", 64, between(16, 64, 400), prompts=16),
        shared_prefix("P 512, 16 examples of 1k-4k", 512, between(1024, 4096, 16)),
        three_levels(128, 256, 48, 10, 3),
    ]
    rivals = {"ours": ours, "FlexAttention": flex_attention, "padded SDPA": padded_sdpa}
    if find_spec("flash_attn"):
        rivals["FlashAttention varlen"] = flash_varlen
    ceilings = _ceilings()
    rows = []
    for shape, dim in itertools.product(shapes, (64, 128)):
        heads, kv_heads, dtype = 32, 8, torch.bfloat16
        error = _error_on_gpu(dim, dtype)
        steps = {name: build(shape, heads, kv_heads, dim, dtype, "cuda") for name, build in rivals.items()}
        floor = _floor(shape.forest, heads, kv_heads, dim, **ceilings)
        rows.append(table_row(shape, dtype, compare(steps, pairs, "cuda"), dim=dim, floor_ms=floor, error=error))
    write_result("attention_gpu", {"card": torch.cuda.get_device_name(), "ceilings": ceilings, "rows": rows})


def _error_on_gpu(dim: int, dtype: torch.dtype) -> float:
    """Largest error against float64 of a small forest on this card, relative to the dense computation in `dtype`."""
    forest = PromptForest.from_segments([40, 300, 20, 9], [-1, 0, 0, -1], prefix_lengths=[70]).to("cuda")
    q, k, v = (_normal((forest.num_tokens, heads, dim), dtype, "cuda") for heads in (8, 2, 2))
    prefix = [_normal((70, 2, dim), dtype, "cuda") for _ in range(2)]
    exact = dense_attention(q, k, v, forest, *prefix)
    same_precision = (dense_attention(q, k, v, forest, *prefix, dtype=dtype) - exact).abs().max()
    return float((prefix_attention(q, k, v, forest, *prefix) - exact).abs().max() / same_precision)


def _floor(forest: PromptForest, heads: int, kv_heads: int, dim: int, bytes_per_ms: float, flops_per_ms: float) -> float:
    """Milliseconds that forward + backward cannot beat: 7 products over visible pairs, or every tensor moved once."""
    segments = forest.segments
    lengths, contexts = segments.lengths.double(), segments.contexts.double()
    pairs = float((lengths * contexts + lengths * (lengths + 1) / 2).sum())
    flops = 7 * 2 * pairs * heads * dim
    keys = forest.num_tokens + forest.num_prefix_tokens
    moved = 2 * dim * (6 * forest.num_tokens * heads + 6 * keys * kv_heads)  # q, out, grad twice; dq; k, v twice; dk, dv
    return max(flops / flops_per_ms, moved / bytes_per_ms)


def _ceilings() -> dict[str, float]:
    """What this card reaches: bytes of a copy, FLOPs of a bfloat16 product, per millisecond."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    big = torch.empty(1 << 28, device="cuda", dtype=torch.int32)
    product = statistics.median(compare({"x": lambda: (a @ b,)}, 10, "cuda")["x"])
    copy = statistics.median(compare({"x": lambda: (big.clone(),)}, 10, "cuda")["x"])
    return {"bytes_per_ms": 2 * big.nbytes / copy, "flops_per_ms": 2 * 8192**3 / product}


def _normal(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(shape, device=device).to(dtype)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["cpu", "gpu", "growth"])
    parser.add_argument("tokens", nargs="?", type=int, default=1024, help="for growth alone")
    parser.add_argument("--pairs", type=int, default=9)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.part == "growth":
        growth(arguments.tokens)
    else:
        {"cpu": cpu, "gpu": gpu}[arguments.part](arguments.pairs)


if __name__ == "__main__":
    main()
