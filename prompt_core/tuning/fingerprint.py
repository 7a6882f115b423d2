"""The name under which an interrupted search finds its own state again, and no other search does."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import polars as pl

from prompt_core.backbone import Backbone
from prompt_core.task import TaskSpec
from prompt_core.tuning.inputs import inputs_digest


def fingerprint(task: TaskSpec, rows: pl.DataFrame, backbone: Backbone, *more: Any) -> str:
    """SHA-256 of what decides what a search over `rows` gives; `more` are JSON values.

    Raises:
        PromptmillError: as `inputs_digest`.
    """
    return hashlib.sha256(json.dumps([inputs_digest(task, (rows, None), backbone), *more], sort_keys=True).encode()).hexdigest()
