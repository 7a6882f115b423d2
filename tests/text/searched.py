"""One text search in a process of its own, to be killed: MODEL CHECKPOINTS; prints the digest."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from typing import Any

from helpers import a_task, backbone_at, examples

from prompt_core.task import TaskSpec
from prompt_core.tuning import tune

ROWS = examples(
    *[(f"{what} number {i} came", "ab"[(i + n) % 2]) for i in range(6) for n, what in enumerate(("Parcel", "A letter", "My box"))]
)


def a_text_task(model: str, **text: Any) -> TaskSpec:
    """The task of the search, with what else its part `text` is to say."""
    text = {"rounds": 4, "together": 6, "block": 4, "demonstrations": 2, "patience": 4, **text}
    template = [{"system": "Sort the message by its mood, and be brief."}, {"user": "{{ text }}"}]
    return a_task(model, template=template, prompt={"kind": "text"}, text=text, tune={"max_tokens": 96})


def main() -> None:
    model, checkpoints = sys.argv[1], Path(sys.argv[2])
    task = a_text_task(model)
    sys.stdout.write(tune(task, ROWS, None, backbone_at(model), checkpoints=checkpoints).digest + "\n")


if __name__ == "__main__":
    main()
