"""One ladder in a process of its own, to be killed: MODEL CHECKPOINTS; prints the digest. Its task and rows serve other tests too."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers import a_task, backbone_at, examples

from prompt_core.task import TaskSpec
from prompt_core.tuning import tune

WORDS = ["parcel", "letter", "invoice", "driver", "door", "street", "label", "scanner", "depot"]
ROWS = examples(*[(f"The {word} is {'late' if i % 2 else 'broken'}", "late" if i % 2 else "broken") for i, word in enumerate(WORDS * 2)])
CHAT = [{"system": "Sort the message by its mood, and be brief."}, {"user": "{{ text }}"}]
TEXT = {"rounds": 2, "together": 4, "block": 4, "demonstrations": 2}
SPACE = {"tune.steps": [2, 4], "tune.learning_rate": {"low": 1e-3, "high": 0.1, "log": True}}


def ladder_task(model: str, text: dict[str, Any] | None = None, search: dict[str, Any] | None = None, **parts: Any) -> TaskSpec:
    """A task whose ladder takes seconds; `text` and `search` change these parts."""
    searched = {"trials": 4, "together": 4, "folds": 2, "space": SPACE, **(search or {})}
    content = {"template": CHAT, "prompt": {"kind": "auto"}, "text": TEXT | (text or {}), **parts}
    content["tune"] = {"max_tokens": 96, "batch_examples": 4, "checkpoint_every": 1, **parts.get("tune", {}), "search": searched}
    return a_task(model, **content)


def main() -> None:
    model, checkpoints = sys.argv[1], Path(sys.argv[2])
    sys.stdout.write(tune(ladder_task(model), ROWS, None, backbone_at(model), checkpoints=checkpoints).digest + "\n")


if __name__ == "__main__":
    main()
