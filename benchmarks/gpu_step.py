"""The tuning step on a GPU: checked, timed against PEFT, compiled and captured, in one call.

    python benchmarks/gpu_step.py                          a 0.5B Qwen2 shape, bfloat16, P 100, B 64, 16-128 tokens; a CUDA GPU
    python benchmarks/gpu_step.py --device cpu --tiny      the same logic on a shape of two layers: numbers of no meaning

Weights are random: nothing is downloaded. The rows of a batch have 16 to 128 tokens each, the second half is the target.

1. Loss and gradient against the textbook in float32 (transformers' own model, rows padded on the right): Promptmill's
   error may be twice PEFT's in the same dtype and a hundredth; in float32 1e-4. Otherwise the script ends there.
2. A step (forward, backward, AdamW) against PEFT's prompt tuning on the same weights and batch, taking turns.
3. The same step with torch.compile and, on a GPU, as a CUDA graph over a fixed number of rows: ever new batches against the
   step without either, their loss and gradient checked. After warm-up a recompilation ends the script.
4. 16 prompts (P 20) x 4 examples of 12-48 tokens in one step against 16 steps one after another, and as one graph.

Figures are medians of the ratios of neighbouring runs. Without --tiny they go to benchmarks/results/gpu_step.json.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import peft
import torch
import torch.nn.functional as F
import transformers
from record import write_result
from shapes import backbone_of, padded, random_texts

from prompt_core.backbone import Backbone
from prompt_core.encoded import Encoded
from prompt_core.prompts import SoftPrompt, Tree, hidden_states
from prompt_core.tuning.objective import Generation
from prompt_core.tuning.standing import StandingStep

Batches = Sequence[Sequence[Encoded]]
_RATE = 1e-3
_ROWS_AT_ONCE = 8  # of the float32 textbook
_BARS = {"peft": 4.0, "fleet": 4.0}


@dataclass(frozen=True)
class Shape:
    model: dict[str, int]
    dtype: torch.dtype
    prompt: int
    batch: int
    texts: tuple[int, int]
    prompts: int
    fleet_prompt: int
    fleet_batch: int
    fleet_texts: tuple[int, int]


_FLEET = (16, 20, 4, (12, 48))
_QWEN = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2}
QWEN2 = Shape({**_QWEN, "vocab_size": 151_936}, torch.bfloat16, 100, 64, (16, 128), *_FLEET)
_SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
TINY = Shape({**_SMALL, "vocab_size": 512}, torch.float32, 10, 6, (4, 16), 4, 5, 2, (4, 12))


def model_of(shape: Shape, device: str) -> Any:
    torch.manual_seed(0)
    config = transformers.Qwen2Config(**shape.model, max_position_embeddings=4096, tie_word_embeddings=True)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=shape.dtype).to(device).eval().requires_grad_(False)


def batch_of(shape: Shape, seed: int) -> list[Encoded]:
    return random_texts(*shape.texts, shape.batch, seed, shape.model["vocab_size"])


def fleet_of(shape: Shape, seed: int) -> list[list[Encoded]]:
    vocabulary = shape.model["vocab_size"]
    return [random_texts(*shape.fleet_texts, shape.fleet_batch, 1000 * seed + i, vocabulary) for i in range(shape.prompts)]


def prompts_of(backbone: Backbone, count: int, tokens: int) -> list[SoftPrompt]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(len(backbone.vocabulary), (count, tokens), generator=generator).to(backbone.device)
    return [SoftPrompt(backbone, backbone.embed(own)) for own in ids]


def eager(backbone: Backbone, prompts: Sequence[SoftPrompt], batches: Batches) -> torch.Tensor:
    """Mean losses, gradients in the parameters: a step of `prompt_core.tuning` without its bookkeeping."""
    objective = Generation(backbone)
    for prompt in prompts:
        prompt.embeddings.grad = None
    trees = [Tree(prompt.state(), *objective.segments(batch)) for prompt, batch in zip(prompts, batches, strict=True)]
    losses = [
        objective.loss(states, batch) / sum(map(objective.weight, batch))
        for states, batch in zip(hidden_states(backbone, trees), batches, strict=True)
    ]
    torch.stack(losses).sum().backward()
    return torch.stack(losses).detach()


def textbook(model: Any, rows: torch.Tensor, batch: Sequence[Encoded]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean loss and its gradient in the prompt's rows, float32, some examples at a time."""
    rows = rows.detach().float().requires_grad_()
    weight, total = sum(len(e.target) for e in batch), 0.0
    for first in range(0, len(batch), _ROWS_AT_ONCE):
        ids, mask, labels = padded(batch[first : first + _ROWS_AT_ONCE], rows.device)
        embeddings = torch.cat([rows.expand(len(ids), -1, -1), model.get_input_embeddings()(ids)], dim=1)
        logits = model(inputs_embeds=embeddings, attention_mask=F.pad(mask, (len(rows), 0), value=1)).logits[:, len(rows) :]
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / weight
        loss.backward()
        total = total + loss.detach()
    assert rows.grad is not None
    return torch.as_tensor(total), rows.grad


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def timed(device: str, run: Callable[[], Any]) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    run()
    wait()
    return 1e3 * (time.perf_counter() - start)


def in_turns(device: str, rounds: int, **runs: Callable[[], Any]) -> dict[str, Any]:
    """Median ms of each, and the median ratio of the first to each of the others in the same round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(timed(device, run))
    first, *others = times
    ratios = {f"{first}/{o}": statistics.median(a / b for a, b in zip(times[first], times[o], strict=True)) for o in others}
    return {**{f"{name}_ms": statistics.median(own) for name, own in times.items()}, **ratios, "runs": times}


def with_optimizer(parameters: Sequence[torch.nn.Parameter], step: Callable[[], Any]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(parameters, lr=_RATE)

    def run() -> None:
        step()
        optimizer.step()

    return run


def versus_peft(shape: Shape, device: str, rounds: int, model: Any, backbone: Backbone) -> dict[str, Any]:
    """Parts 1 and 2."""
    batch, (prompt,) = batch_of(shape, 0), prompts_of(backbone, 1, shape.prompt)
    wide = copy.deepcopy(model).float()
    loss, gradient = textbook(wide, prompt.embeddings, batch)
    del wide
    theirs = peft.get_peft_model(copy.deepcopy(model), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=shape.prompt))
    weight = theirs.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(prompt.embeddings)
    ids, mask, labels = padded(batch, backbone.device)

    def peft_step() -> torch.Tensor:
        weight.grad = None
        found: torch.Tensor = theirs(input_ids=ids, attention_mask=mask, labels=labels).loss
        found.backward()
        return found.detach()

    mine = eager(backbone, [prompt], [batch])
    their_loss = peft_step()
    errors = {
        "ours": (error(mine, loss[None]), error(prompt.embeddings.grad, gradient)),
        "peft": (error(their_loss, loss), error(weight.grad, gradient)),
    }
    for side, (of_loss, of_gradient) in errors.items():
        print(f"{side} against float32: loss {of_loss:.1e}, gradient {of_gradient:.1e}", flush=True)
    allowed = [1e-4] * 2 if shape.dtype == torch.float32 else [2 * e + 1e-2 for e in errors["peft"]]
    if any(found > most for found, most in zip(errors["ours"], allowed, strict=True)):
        raise SystemExit("gpu_step: Promptmill's loss or gradient is off, see above; nothing was timed")
    figures = in_turns(
        device,
        rounds,
        peft=with_optimizer([weight], peft_step),
        ours=with_optimizer([prompt.embeddings], lambda: eager(backbone, [prompt], [batch])),
    )
    print(
        "PEFT {peft_ms:.1f} ms, Promptmill {ours_ms:.1f} ms: {peft/ours:.2f}x (bar: {bar}x)".format(bar=_BARS["peft"], **figures),
        flush=True,
    )
    return {**figures, "errors": errors}


def standing_for(backbone: Backbone, prompts: Sequence[SoftPrompt], many: Sequence[Batches], compiled: bool) -> StandingStep:
    """A step with room for each of these."""
    rows = [sum(len(e.input) + len(e.target) - 1 for batch in batches for e in batch) for batches in many]
    targets = max(sum(len(e.target) for batch in batches for e in batch) for batches in many)
    examples = max(sum(map(len, batches)) for batches in many)
    tokens = sum(len(prompt.embeddings) for prompt in prompts) + max(rows)
    return StandingStep(backbone, prompts, -(-tokens // 128) * 128, examples, -(-targets // 128) * 128, compiled)


def without_recompilation(shape: Shape, device: str, rounds: int, backbone: Backbone, compiled: bool) -> dict[str, Any]:
    """Part 3."""
    many = [[batch_of(shape, seed)] for seed in range(5)]
    prompts = prompts_of(backbone, 1, shape.prompt)
    (rows,) = (prompt.embeddings for prompt in prompts)
    step = standing_for(backbone, prompts, many, compiled)
    torch._dynamo.reset()
    warm_up = timed(device, lambda: step(many[0]))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch._dynamo.config.error_on_recompile = True
    worst = (0.0, 0.0)
    for batches in many:
        found = step(batches).clone()
        gradient = rows.grad.clone()
        expected = eager(backbone, prompts, batches)
        worst = max(worst[0], error(found, expected)), max(worst[1], error(gradient, rows.grad))
    allowed = 1e-4 if shape.dtype == torch.float32 else 0.1  # two orders of rounding
    if max(worst) > allowed:
        raise SystemExit(f"gpu_step: the standing step differs from the plain one: loss {worst[0]:.1e}, gradient {worst[1]:.1e}")
    turns = iter(range(1 << 30))
    figures = in_turns(
        device,
        rounds,
        plain=with_optimizer([rows], lambda: eager(backbone, prompts, many[next(turns) % len(many)])),
        standing=with_optimizer([rows], lambda: step(many[next(turns) % len(many)])),
    )
    anew = torch._dynamo.utils.counters["stats"]["unique_graphs"] - graphs
    if anew or (compiled and not graphs):
        raise SystemExit(f"gpu_step: {graphs} graphs compiled in the warm-up, {anew} after it")
    print(
        f"standing step: warm-up {warm_up / 1e3:.1f} s, {graphs} compiled graphs, none after it; loss within {worst[0]:.1e}, "
        f"gradient within {worst[1]:.1e} of the plain step; plain {figures['plain_ms']:.1f} ms, standing {figures['standing_ms']:.1f} ms: "
        f"{figures['plain/standing']:.2f}x",
        flush=True,
    )
    return {**figures, "warm_up_ms": warm_up, "compiled_graphs": graphs, "recompiled": anew, "differs": worst}


def fleet(shape: Shape, device: str, rounds: int, backbone: Backbone, compiled: bool) -> dict[str, Any]:
    """Part 4."""
    batches, prompts = fleet_of(shape, 0), prompts_of(backbone, shape.prompts, shape.fleet_prompt)
    lone = [
        with_optimizer([prompt.embeddings], lambda prompt=prompt, batch=batch: eager(backbone, [prompt], [batch]))
        for prompt, batch in zip(prompts, batches, strict=True)
    ]
    parameters = [prompt.embeddings for prompt in prompts]
    torch._dynamo.config.error_on_recompile = False  # another size than part 3's
    step = standing_for(backbone, prompts, [batches], compiled)
    figures = in_turns(
        device,
        rounds,
        alone=lambda: [run() for run in lone],
        fleet=with_optimizer(parameters, lambda: eager(backbone, prompts, batches)),
        standing=with_optimizer(parameters, lambda: step(batches)),
    )
    print(
        "{prompts} prompts: {alone_ms:.1f} ms one after another, {fleet_ms:.1f} in a fleet: {alone/fleet:.2f}x (bar: {bar}x), "
        "{standing_ms:.1f} as a standing step: {alone/standing:.2f}x".format(prompts=shape.prompts, bar=_BARS["fleet"], **figures),
        flush=True,
    )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--eager", action="store_true", help="without torch.compile; on a GPU the CUDA graph remains")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    device, rounds, compiled = arguments.device, arguments.rounds, not arguments.eager
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu_step: there is no CUDA GPU here; `--device cpu --tiny` runs the same logic on a small shape")
    if device == "cpu" and not arguments.tiny:
        raise SystemExit("gpu_step: the 0.5B shape is for a GPU; add --tiny on a CPU")
    shape = TINY if arguments.tiny else QWEN2
    model = model_of(shape, device)
    backbone = backbone_of(model)
    record = {"versus_peft": versus_peft(shape, device, rounds, model, backbone)}
    del model
    record["standing"] = without_recompilation(shape, device, rounds, backbone, compiled)
    record["fleet"] = fleet(shape, device, rounds, backbone, compiled)
    if not arguments.tiny:
        peak = torch.cuda.max_memory_allocated() / 2**20
        write_result("gpu_step", {"device": torch.cuda.get_device_name(), "shape": shape.model, "peak_mib": peak, **record})


if __name__ == "__main__":
    main()
