"""The name under which an interrupted search finds its own state again, and no other search does."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import Any

import polars as pl

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.data.digest import frame_digest
from prompt_core.task import TaskSpec
from prompt_core.tuning.prepared import library_versions


def fingerprint(task: TaskSpec, rows: pl.DataFrame, backbone: Backbone, *more: Any) -> str:
    """SHA-256 of what decides what a search over `rows` gives; `more` are JSON values."""
    content = [
        task.without_places(backbone.identity.name),
        TunedPrompt.load(task.locate(task.prompt.start_from)).digest if task.prompt.start_from else None,
        frame_digest(rows),
        backbone.identity.model_dump(),
        {**library_versions(), "optuna": version("optuna")},
        *more,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
