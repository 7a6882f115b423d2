"""Kills a tuning process at random moments and resumes it: MODEL FOLDER TIMES [search].

A process forks for each, so that torch loads once.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

torch.set_num_threads(1)  # before the first fork: threads do not survive one

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers import a_task, backbone_at, examples  # noqa: E402

from prompt_core.backbone import Backbone  # noqa: E402
from prompt_core.tuning import tune  # noqa: E402

WORDS = ["parcel", "letter", "invoice", "driver", "door", "street", "label", "scanner", "depot", "truck"]
TRAIN = examples(*[(f"The {word} is {'late' if i % 2 else 'broken'}", "late" if i % 2 else "broken") for i, word in enumerate(WORDS)])
VALIDATION = examples(("My box is late", "late"), ("My box is broken", "broken"))


def tuned(backbone: Backbone, checkpoints: Path | None) -> str:
    tune_settings = {"steps": 60, "batch_examples": 4, "validate_every": 5, "checkpoint_every": 3, "patience": 100}
    if "search" in sys.argv:
        rates = {"low": 1e-4, "high": 0.1, "log": True}
        tune_settings["search"] = {"trials": 6, "together": 3, "folds": 2, "space": {"tune.steps": [4, 10], "tune.learning_rate": rates}}
    task = a_task(backbone.identity.name, template="Sort this: {{ text }}\nKind:", prompt={"kind": "soft"}, tune=tune_settings)
    return tune(task, TRAIN, VALIDATION, backbone, checkpoints=checkpoints).digest


def in_a_process(backbone: Backbone, checkpoints: Path, kill_after: float | None) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            (checkpoints.parent / "digest").write_text(tuned(backbone, checkpoints))
            code = 0
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def main() -> None:
    backbone, folder, times = backbone_at(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    began = time.monotonic()
    in_a_process(backbone, folder / "none", None)  # this one never trains: what it had begun would not survive a fork
    seconds = time.monotonic() - began
    expected = (folder / "digest").read_text()
    moments = random.Random(0)
    same = written = 0
    for number in range(times):
        place = folder / str(number)
        place.mkdir()
        in_a_process(backbone, place / "checkpoints", moments.uniform(0.02, 0.95) * seconds)
        written += any((place / "checkpoints").glob("*.safetensors")) if (place / "checkpoints").exists() else 0
        (place / "digest").unlink(missing_ok=True)
        in_a_process(backbone, place / "checkpoints", None)
        same += (place / "digest").read_text() == expected
        shutil.rmtree(place)
    sys.stdout.write(f"{same} of {times} resumed to the same digest, {written} of them from a checkpoint\n")


if __name__ == "__main__":
    main()
