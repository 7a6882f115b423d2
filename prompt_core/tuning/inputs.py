"""What decides the outcome of a tuning, as one digest, known before anything is tuned."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import Any

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.data import unlabelled_inputs
from prompt_core.data.digest import frame_digest
from prompt_core.manifest import BackboneIdentity
from prompt_core.task import TaskSpec
from prompt_core.teacher import read_context
from prompt_core.tuning.prepared import Sides, library_versions

_WARM = ("start", "start_from", "text")  # how a prompt that started from the live one differs from its task


def inputs_digest(task: TaskSpec, sides: Sides, backbone: Backbone) -> str:
    """SHA-256 (64 hex characters) of settings, rows, frozen model, library versions and device: equal digests, equal prompts.

    The live prompt, which a retuning may start from, is left out: where nothing changed, what was tuned last is still right.

    Raises:
        PromptmillError: a file that the task names cannot be read.
    """
    train, validation = sides
    content: list[Any] = [
        task.without_places(backbone.identity.name),
        [frame_digest(train), None if validation is None else frame_digest(validation)],
        frame_digest(unlabelled_inputs(task)) if task.reads_unlabelled else None,
        TunedPrompt.load(task.locate(task.prompt.start_from)).digest if task.prompt.start_from else None,
        hashlib.sha256(read_context(task).encode()).hexdigest() if task.distill else None,
        backbone.identity.model_dump(),
        library_versions(),
        version("optuna") if task.search or task.prompt.kind == "text" else None,
        backbone.device.type,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def is_made_of(prompt: TunedPrompt, task: TaskSpec, sides: Sides, identity: BackboneIdentity, device: str) -> bool:
    """Whether a prompt says that it was tuned from these very settings and rows, on this model, with these versions.

    Only of what its manifest has in full: settings that a search chose, texts and distilled contexts are not compared.
    """
    manifest = prompt.manifest
    if task.search or task.distill or task.reads_unlabelled or task.prompt.start_from or task.prompt.kind == "text":
        return False
    train, validation = sides
    expected, found = task.without_places(identity.name), dict(manifest.task)
    if manifest.started_from:
        found["prompt"] = found["prompt"] | {name: expected["prompt"][name] for name in _WARM}
    data = manifest.data
    return (
        found == expected
        and data.train == frame_digest(train)
        and data.validation == frame_digest(train.clear() if validation is None else validation)
        and (manifest.backbone, manifest.versions, manifest.device) == (identity, library_versions(), device)
    )
