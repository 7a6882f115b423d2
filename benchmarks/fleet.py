"""What it costs to tune many prompts side by side on one frozen backbone, beside one after another.

    python benchmarks/fleet.py            16 prompts (P 20) x 4 examples of 12-48 tokens a step, 12-layer Llama, float32

Both ways run in one process, taking turns; the figure is the median of the ratios of time per prompt and step. Memory is
the peak of a process of its own, with 1, 16 and 64 prompts and the same token budget per pass.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
from record import write_result
from shapes import llama12, random_ids

from prompt_core.backbone import Backbone
from prompt_core.encoded import Encoded
from prompt_core.methods import TuneSpec
from prompt_core.prompts import SoftPrompt
from prompt_core.tuning.gradient import optimise
from prompt_core.tuning.member import Member, Part
from prompt_core.tuning.objective import Generation

PROMPT, EXAMPLES, TARGET = 20, 4, 4


def a_fleet(backbone: Backbone, prompts: int, steps: int, batch_tokens: int) -> list[Member]:
    members = []
    for number in range(prompts):
        data = [Encoded(ids[:-TARGET], ids[-TARGET:], False) for ids in random_ids(12, 48, 4 * EXAMPLES, seed=number)]
        generator = torch.Generator().manual_seed(number)
        rows = backbone.embed(torch.randint(1000, 40_000, (PROMPT,), generator=generator))
        spec = TuneSpec(steps=steps, batch_examples=EXAMPLES, batch_tokens=batch_tokens, learning_rate=1e-3)
        members.append(Member([Part(SoftPrompt(backbone, rows), Generation(backbone), data, [])], spec, generator))
    return members


def seconds(backbone: Backbone, members: list[Member], together: bool) -> float:
    start = time.perf_counter()
    for fleet in [members] if together else [[member] for member in members]:
        optimise(backbone, fleet)
    return time.perf_counter() - start


def speed(prompts: int, steps: int, rounds: int) -> dict[str, object]:
    backbone = llama12()
    seconds(backbone, a_fleet(backbone, prompts, 1, 8192), together=True)
    runs = []
    for _ in range(rounds):
        alone, fleet = (seconds(backbone, a_fleet(backbone, prompts, steps, 8192), together) for together in (False, True))
        runs.append({"alone_ms": 1e3 * alone / prompts / steps, "fleet_ms": 1e3 * fleet / prompts / steps, "ratio": alone / fleet})
    ratio = statistics.median(run["ratio"] for run in runs)
    per_step = {way: statistics.median(run[way] for run in runs) for way in ("alone_ms", "fleet_ms")}
    print(
        f"{prompts} prompts: {per_step['alone_ms']:.1f} ms per prompt and step alone, {per_step['fleet_ms']:.1f} in a fleet: {ratio:.2f}x"
    )
    return {"prompts": prompts, "steps": steps, "ratio": ratio, **per_step, "runs": runs}


def memory(prompts: int) -> None:
    """Peak memory of tuning a fleet, in MiB above the loaded backbone; a process of its own, for peaks do not go down."""
    backbone = llama12()
    members = a_fleet(backbone, prompts, 2, batch_tokens=256)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    optimise(backbone, members)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"prompts": prompts, "mib": (peak - before) / 1024}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-of", type=int, help="measure one point of memory alone")
    arguments = parser.parse_args()
    if arguments.memory_of:
        memory(arguments.memory_of)
        return
    points = []
    for prompts in (1, 16, 64):
        done = subprocess.run([sys.executable, __file__, "--memory-of", str(prompts)], capture_output=True, text=True, check=True)
        points.append(json.loads(done.stdout.splitlines()[-1]))
        print("{prompts} prompts: {mib:.0f} MiB above the loaded backbone, passes of 256 tokens".format(**points[-1]))
    state = PROMPT * 576 * 4 * 6 / 2**20  # rows, their start, the distance, two moments, the average
    print(f"state of one prompt: {state:.2f} MiB")
    measured = speed(arguments.prompts, arguments.steps, arguments.rounds)
    write_result(
        "fleet_cpu", {"shape": "12 layers, 576 wide, float32, P 20, 4 examples of 12-48", **measured, "memory": points, "state_mib": state}
    )


if __name__ == "__main__":
    main()
