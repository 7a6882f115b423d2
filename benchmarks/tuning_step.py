"""What a step of tuning costs, beside PEFT's and beside what the processor could do.

    python benchmarks/tuning_step.py                        everything: minutes, and 20 GB of memory for PEFT
    python benchmarks/tuning_step.py --only smollm2 llama12 rate memory

A step is forward, backward and AdamW on the prompt, by both sides on the same weights, examples and dtype. PEFT runs as
its users run it: `get_peft_model` on an unchanged transformers model with its default attention, rows padded on the
right to the longest, labels -100 but for the targets. Before anything is timed in float32 both losses and both
gradients must agree to 1e-4. The sides take turns in one process, one step of PEFT's and as much time of ours (at most
four steps); a figure is the median of the ratios. The second half of each random text is its target; an E2E text's
target is its sentence.

`rate` is the share of a plain matrix product's speed, measured in turns with the step: the products of the best of
SmolLM2's own shapes at 1,200 and at 2,400 rows. A step has, exactly, for L layers with W weights in their linear maps,
S rows (prompt and examples, but for each example's last token), T target rows, a head of H * V weights and a total of
N (query, key) pairs that see each other, with Hq heads of D:

    forward    2 S L W + 2 T H V + 4 N L Hq D
    backward   2 S L W + 2 T H V + 8 N L Hq D    towards the rows only, the weights are frozen

both less what follows attention in the last layer for the S - T rows that no loss looks at.

`memory` is the peak of the process's resident memory in three steps above the loaded model, each side in a process of
its own. Linux only.
"""

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import polars as pl
import torch
import transformers
from record import RESULTS, SHARED_DATA, write_result
from shapes import llama12, padded, plain_llama12, random_ids, random_texts

from prompt_core.backbone import Backbone, load_backbone
from prompt_core.backbone.locate import locate
from prompt_core.encoded import Encoded
from prompt_core.prompts import DeepPrefix, Prompt, SoftPrompt, Tree, hidden_states
from prompt_core.task import BackboneSpec
from prompt_core.tuning.objective import Generation

Step = Callable[[], torch.Tensor]
_RATE = 1e-3

_REPEATS = 20  # products that are timed together
_STEPS = 4  # of ours in a turn at most


@dataclass(frozen=True)
class Case:
    """A shape to measure: `low` to `high` tokens per random text, or texts of E2E where they are None."""

    model: str
    dtype: str
    kind: str
    prompt: int
    batch: int
    low: int | None
    high: int | None

    @property
    def name(self) -> str:
        texts = "e2e" if self.low is None else f"{self.low}-{self.high}"
        return f"{self.model} {self.dtype} {self.kind} P{self.prompt} B{self.batch} {texts}"


CASES = [
    Case("smollm2", "bfloat16", "prompt", 17, 16, None, None),
    Case("smollm2", "bfloat16", "prompt", 100, 32, 8, 32),
    Case("smollm2", "float32", "prompt", 100, 32, 8, 32),
    Case("llama12", "float32", "prompt", 20, 16, 12, 48),
    Case("llama12", "float32", "prompt", 100, 16, 12, 48),
    Case("llama12", "float32", "prompt", 100, 32, 8, 32),
    Case("llama12", "float32", "prefix", 100, 32, 8, 32),
]
MEMORY = [CASES[1], CASES[5]]
RATE = [Case("smollm2", dtype, "prompt", 17, 16, None, None) for dtype in ("float32", "bfloat16")]


def texts_of(case: Case, seed: int = 0) -> list[Encoded]:
    if case.low is not None and case.high is not None:
        return random_texts(case.low, case.high, case.batch, seed)
    file = SHARED_DATA / "e2e_nlg_train.parquet"
    if not file.exists():  # as long as E2E's: the tokens do not matter
        lengths = random.Random(seed)
        ids = [random_ids(n, n, 1, seed + i)[0] for i, n in enumerate(round(lengths.gauss(75, 15)) for _ in range(case.batch))]
        return [Encoded(text[: 2 * len(text) // 3], text[2 * len(text) // 3 :], False) for text in ids]
    tokenizer = transformers.AutoTokenizer.from_pretrained(locate(BackboneSpec(name="smollm2"), Path()).source)
    rows = pl.read_parquet(file).sample(case.batch, seed=seed)
    return [
        Encoded(
            tuple(tokenizer(f"<|im_end|>\n<|im_start|>user\n{source}<|im_end|>\n<|im_start|>assistant\n").input_ids),
            tuple(tokenizer(f"{target}<|im_end|>").input_ids),
            False,
        )
        for source, target in rows.select("source", "target").iter_rows()
    ]


def our_backbone(case: Case) -> Backbone:
    return llama12(case.dtype) if case.model == "llama12" else load_backbone(BackboneSpec(name="smollm2", dtype=case.dtype))


def ours(case: Case, backbone: Backbone) -> tuple[Step, Prompt]:
    examples, generator = texts_of(case), torch.Generator().manual_seed(0)
    if case.kind == "prompt":
        prompt: Prompt = SoftPrompt(backbone, backbone.embed(torch.randint(1000, 40_000, (case.prompt,), generator=generator)))
    else:
        shape = (2, backbone.num_layers, case.prompt, backbone.num_kv_heads, backbone.head_dim)
        prompt = DeepPrefix(backbone, *torch.randn(shape, generator=generator))
    objective = Generation(backbone)
    weight = sum(map(objective.weight, examples))
    optimizer = torch.optim.AdamW(prompt.parameters(), lr=_RATE)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        (states,) = hidden_states(backbone, [Tree(prompt.state(), *objective.segments(examples))])
        loss = objective.loss(states, examples) / weight
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step, prompt


def plain_model(case: Case) -> Any:
    dtype = getattr(torch, case.dtype)
    if case.model == "llama12":
        return plain_llama12(dtype)
    return transformers.AutoModelForCausalLM.from_pretrained(locate(BackboneSpec(name="smollm2"), Path()).source, dtype=dtype).eval()


def pefts(case: Case) -> tuple[Step, Any]:
    kind = peft.PromptTuningConfig if case.kind == "prompt" else peft.PrefixTuningConfig
    model = peft.get_peft_model(plain_model(case), kind(task_type="CAUSAL_LM", num_virtual_tokens=case.prompt))
    ids, mask, labels = padded(texts_of(case))
    weight = model.prompt_encoder["default"].embedding.weight
    optimizer = torch.optim.AdamW([weight], lr=_RATE)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step, weight


def as_pefts(prompt: Prompt, of: str) -> torch.Tensor:
    """Our parameters, or their gradients, in the layout of PEFT's embedding."""
    tensors = [parameter if of == "data" else parameter.grad for parameter in prompt.parameters()]
    if isinstance(prompt, SoftPrompt):
        return tensors[0].detach()
    stacked = torch.stack(tensors).detach()  # [2, L, P, Hkv, D]: theirs is tokens, layers, (key, value), heads
    return stacked.permute(2, 1, 0, 3, 4).flatten(1)


def versus_peft(case: Case, rounds: int) -> dict[str, Any]:
    backbone = our_backbone(case)
    step, prompt = ours(case, backbone)
    peft_step, weight = pefts(case)
    with torch.no_grad():
        weight.copy_(as_pefts(prompt, "data"))
    loss, expected = step(), peft_step()
    gradient = as_pefts(prompt, "grad")
    differs = float((loss - expected).abs() / expected), float((gradient - weight.grad).norm() / weight.grad.norm())
    if case.dtype == "float32" and max(differs) > 1e-4:
        raise SystemExit(f"{case.name}: loss and gradient differ from PEFT's by {differs[0]:.1e} and {differs[1]:.1e}")
    runs = []
    steps = max(1, min(_STEPS, round(seconds(peft_step) / seconds(step))))
    for _ in range(rounds):
        theirs, mine = seconds(peft_step), seconds(lambda: [step() for _ in range(steps)]) / steps
        runs.append({"peft_ms": 1e3 * theirs, "ours_ms": 1e3 * mine, "ratio": theirs / mine})
    figures = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    print(f"{case.name}: PEFT {figures['peft_ms']:.0f} ms, ours {figures['ours_ms']:.0f} ms: {figures['ratio']:.2f}x", flush=True)
    tokens = sum(len(e.input) + len(e.target) for e in texts_of(case))
    return {**figures, "tokens": tokens, "loss_differs": differs[0], "gradient_differs": differs[1], "runs": runs}


def seconds(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def work(case: Case, backbone: Backbone) -> float:
    """Floating-point operations of a step, see above."""
    config = transformers.AutoConfig.from_pretrained(locate(BackboneSpec(name="smollm2"), Path()).source)
    width, heads, kv_width = config.hidden_size, config.num_attention_heads, backbone.num_kv_heads * backbone.head_dim
    linear = 2 * width * width + 2 * width * kv_width + 3 * width * config.intermediate_size
    examples = texts_of(case)
    lengths = [len(e.input) + len(e.target) - 1 for e in examples]
    targets = sum(len(e.target) for e in examples)
    triangle = [n * (n + 1) // 2 for n in (case.prompt, *lengths)]
    pairs = sum(triangle) + case.prompt * sum(lengths)
    per_direction = 2 * (case.prompt + sum(lengths)) * backbone.num_layers * linear + 2 * targets * width * config.vocab_size
    left_out = 2 * (case.prompt + sum(lengths) - targets) * (linear - width * width - 2 * width * kv_width)
    return 2 * (per_direction - left_out) + 12 * pairs * backbone.num_layers * heads * backbone.head_dim


def share_of_product(case: Case, rounds: int) -> dict[str, Any]:
    backbone = our_backbone(case)
    step, _ = ours(case, backbone)
    operations = work(case, backbone)
    dtype = getattr(torch, case.dtype)
    shapes = [(rows, *shape) for rows in (1200, 2400) for shape in ((576, 1536), (1536, 576))]
    products = {(m, k, n): (torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)) for m, k, n in shapes}
    step()
    times: dict[Any, list[float]] = {key: [] for key in ["step", *products]}
    for _ in range(rounds):
        for (m, k, n), (a, b) in products.items():
            torch.mm(a, b)
            spent = seconds(lambda a=a, b=b: [torch.mm(a, b) for _ in range(_REPEATS)])
            times[m, k, n].append(2 * m * k * n * _REPEATS / spent)
        times["step"].append(operations / seconds(step))
    best = max(products, key=lambda shape: statistics.median(times[shape]))
    shares = [mine / plain for mine, plain in zip(times["step"], times[best], strict=True)]
    figures = {
        "share": statistics.median(shares),
        "step_gflops": statistics.median(times["step"]) / 1e9,
        "product_gflops": statistics.median(times[best]) / 1e9,
        "product": best,
        "operations": operations,
        "shares": shares,
    }
    print("{name}: {share:.0%} of a product's rate, {step_gflops:.0f} of {product_gflops:.0f} GFLOP/s".format(name=case.name, **figures))
    return figures


def resident(field: str) -> float:
    """VmRSS (now) or VmHWM (the peak since it was reset) of this process in MiB."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) / 1024


def peak_of(case: Case, side: str) -> None:
    step: Step = pefts(case)[0] if side == "peft" else ours(case, our_backbone(case))[0]
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    for _ in range(3):
        step()
    print(json.dumps({"model_mib": before, "peak_mib": resident("VmHWM") - before}))


def memory(case: Case) -> dict[str, Any]:
    found = {}
    for side in ("peft", "ours"):
        command = [sys.executable, __file__, "--peak-of", side, "--case", case.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[side] = json.loads(done.stdout.splitlines()[-1])
    ratio = found["peft"]["peak_mib"] / found["ours"]["peak_mib"]
    print(f"{case.name}: PEFT {found['peft']['peak_mib']:.0f} MiB, ours {found['ours']['peak_mib']:.0f} MiB: {ratio:.1f}x", flush=True)
    return {"ratio": ratio, **found}


def measured_before() -> dict[str, dict[str, Any]]:
    file = RESULTS / "tuning_step.json"
    parts = ("versus_peft", "memory", "share_of_product")
    record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {part: record.get(part, {}) for part in parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=["smollm2", "llama12", "memory", "rate"], help="the other figures stay as they were")
    parser.add_argument("--case", help="of these, cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-of", choices=["peft", "ours"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    parts = arguments.only or ["smollm2", "llama12", "memory", "rate"]

    def chosen(cases: Sequence[Case]) -> list[Case]:
        return [case for case in cases if arguments.case is None or arguments.case in case.name]

    if arguments.peak_of:
        peak_of(chosen(MEMORY)[0], arguments.peak_of)
        return
    record = measured_before()
    for case in chosen(CASES):
        if case.model in parts:
            record["versus_peft"][case.name] = versus_peft(case, arguments.rounds)
    if "rate" in parts:
        for case in chosen(RATE):
            record["share_of_product"][case.name] = share_of_product(case, arguments.rounds)
    if "memory" in parts:
        for case in chosen(MEMORY):
            record["memory"][case.name] = memory(case)
    write_result("tuning_step", record)


if __name__ == "__main__":
    main()
