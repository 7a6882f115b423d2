"""Scoring many candidate prompts over many examples and labels, beside a plain batched transformers loop.

    python benchmarks/text_search.py    32 candidates of 60-120 tokens x 64 examples x 10 labels, 12-layer Llama, float32

Ours computes each candidate's own tokens once per pass, each example once per candidate and what labels begin with once per
example. The plain loop runs every (candidate, example, label) as a padded row of a batch and takes the label's tokens from
the logits; a second plain loop sends only the label's rows through the head, which few would write. All of it would take
the plain loops an hour: they are timed on a part of the candidates and examples, ours on the same part, taking turns, and
ours on everything once. Peak memory is that of a process of its own for each, above what the loaded model takes.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import write_result
from shapes import llama12, plain_llama12, random_ids
from torch import Tensor

from prompt_core.encoded import Encoded
from prompt_core.prompts import PromptState
from prompt_core.text.score import Question, score_prompts
from prompt_core.tuning.objective import LabelWords

Ids = list[tuple[int, ...]]


def peak_mib() -> float:
    """Of resident memory. Not getrusage: its peak is inherited from the process that started this one."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


class OfIds:
    """Stands for the encoding of a task whose tokens are given."""


def ours(backbone: Any, prompts: Ids, texts: Ids, labels: Ids, budget: int) -> Tensor:
    examples = [Encoded(ids, (), False) for ids in texts]
    questions = [Question(OfIds(), PromptState.of(backbone, root=ids), LabelWords(backbone, labels)) for ids in prompts]  # type: ignore[arg-type]
    return torch.stack(score_prompts(backbone, questions, [examples] * len(prompts), budget))


@torch.inference_mode()
def plain(model: Any, prompts: Ids, texts: Ids, labels: Ids, batch: int, all_logits: bool) -> Tensor:
    triples = [(prompt + text, label) for prompt in prompts for text in texts for label in labels]
    scores = []
    for start in range(0, len(triples), batch):
        part = triples[start : start + batch]
        longest = max(len(front) + len(label) for front, label in part)
        ids, mask = torch.zeros(2, len(part), longest, dtype=torch.int64)
        for row, (front, label) in enumerate(part):
            ids[row, : len(front) + len(label)] = torch.tensor(front + label)
            mask[row, : len(front) + len(label)] = 1
        states = (model if all_logits else model.model)(ids, attention_mask=mask)[0]
        for row, (front, label) in enumerate(part):
            own = states[row, len(front) - 1 : len(front) + len(label) - 1]
            chances = (own if all_logits else model.lm_head(own)).log_softmax(-1)
            scores.append(chances[torch.arange(len(label)), torch.tensor(label)].mean())
    return torch.stack(scores).view(len(prompts), len(texts), len(labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=32)
    parser.add_argument("--examples", type=int, default=64)
    parser.add_argument("--labels", type=int, default=10)
    parser.add_argument("--part", type=int, nargs=2, default=(2, 4), help="candidates and examples that the plain loops are timed on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="rows of a plain batch")
    parser.add_argument("--budget", type=int, default=4096, help="tokens of a packed pass")
    parser.add_argument(
        "--memory-of", choices=["ours", "plain", "plain, head on label rows"], help="print one way's peak on the part, and end"
    )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    prompts, texts = random_ids(60, 120, arguments.candidates), random_ids(15, 35, arguments.examples, seed=1)
    labels = [(*ids, 0) for ids in random_ids(1, 4, arguments.labels, seed=2)]
    candidates, rows = arguments.part
    some = (prompts[:candidates], texts[:rows], labels)

    def ways(backbone: Any, model: Any) -> dict[str, Callable[[], Tensor]]:
        return {
            "ours": lambda: ours(backbone, *some, arguments.budget),
            "plain": lambda: plain(model, *some, arguments.batch, True),
            "plain, head on label rows": lambda: plain(model, *some, arguments.batch, False),
        }

    if arguments.memory_of:
        backbone = llama12() if arguments.memory_of == "ours" else None
        model = None if backbone else plain_llama12()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is held now; loading took more
        loaded = peak_mib()
        ways(backbone, model)[arguments.memory_of]()
        print(peak_mib() - loaded)
        return
    again = [sys.executable, __file__, *sys.argv[1:], "--memory-of"]
    backbone, model = llama12(), plain_llama12()
    times: dict[str, list[float]] = {name: [] for name in ways(None, None)}
    found: dict[str, Tensor] = {}
    ours(backbone, *some, arguments.budget)
    for _ in range(arguments.rounds):
        for name, way in ways(backbone, model).items():
            start = time.perf_counter()
            found[name] = way()
            times[name].append(time.perf_counter() - start)
    errors = {name: float((scores - found["ours"]).abs().max()) for name, scores in found.items() if name != "ours"}
    ratios = {name: statistics.median(a / b for a, b in zip(times[name], times["ours"], strict=True)) for name in errors}
    start = time.perf_counter()
    ours(backbone, prompts, texts, labels, arguments.budget)
    whole = time.perf_counter() - start
    del backbone, model
    memory = {name: float(subprocess.run([*again, name], capture_output=True, text=True, check=True).stdout) for name in times}
    print(f"{len(prompts)} candidates x {len(texts)} examples x {len(labels)} labels: {whole:.1f} s, {torch.get_num_threads()} threads")
    for name, ratio in ratios.items():
        share = memory["ours"] / memory[name]
        print(
            f"{name}: {ratio:.1f}x as long as ours on {candidates} x {rows}, scores differ by {errors[name]:.1e}; "
            f"ours takes {share:.2f} of it"
        )
    sizes = {"candidates": len(prompts), "examples": len(texts), "labels": len(labels), "part": list(arguments.part)}
    measured = {"ratio": ratios, "largest_difference": errors, "seconds": times, "all_seconds": whole, "peak_mib_above_model": memory}
    write_result("text_search_cpu", sizes | {"batch": arguments.batch, "budget": arguments.budget} | measured)


if __name__ == "__main__":
    main()
