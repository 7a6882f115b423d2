"""Published prompts of tiny tuned models, and the READMEs of their exports as programs."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
from helpers import a_task, examples

from prompt_core.backbone import Backbone
from prompt_core.export import Published
from prompt_core.export.base import PLACE
from prompt_core.tuning import tune

PAIRS = [(f"Where is parcel number {i}?", f"It is in depot {i % 3}") for i in range(8)]
TEXTS = ["Where is parcel number 3?", "Is it lost", "A much longer question about nothing, really: why?", "5"]
EVALUATION = {
    "verdict": {"passed": True, "reasons": []},
    "rows": 40,
    "contenders": [{"name": "tuned", "kind": "tuned", "metrics": {"chrf": {"value": 31.5, "low": 28.0, "high": 34.25}}}],
}


def published(backbone: Backbone, template: Any = "Answer briefly. {{ text }}\n", version: int = 1, **parts: Any) -> Published:
    """A generator that was tuned for a few steps."""
    content = {"objective": "generate", "tune": {"steps": 4, "learning_rate": 0.05}, "evaluate": {"max_new_tokens": 12}, **parts}
    task = a_task(backbone.origin or backbone.identity.name, template=template, **content)
    rows = examples(*PAIRS).with_columns(more=pl.lit("today"))
    return Published(tune(task, rows, None, backbone), version, EVALUATION)


def text_of(recipe: Mapping[str, Any], **fields: str) -> str:
    """An input as the recipe says."""
    return recipe["root"] + "".join(part["text"] if "text" in part else fields[part["field"]] for part in recipe["input"])


def recipes(folder: Path) -> list[dict[str, Any]]:
    """The recipes of an export."""
    content: list[dict[str, Any]] = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    return content


def run_readme(folder: Path, base: str | Path = "", **fields: str) -> dict[str, Any]:
    """The names that the Python code of an export's README defines, run in its folder with these fields; `base` fills the place in it."""
    page = (folder / "README.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    code = re.sub(r"fields = \{.*\}", f"fields = {fields!r}", code)
    assert (PLACE in code) == bool(base)
    code = code.replace(PLACE, str(base))
    names: dict[str, Any] = {}
    with contextlib.chdir(folder):
        exec(code, names)
    return names
