"""What decides the answers of untuned contenders, as one digest."""

from __future__ import annotations

import hashlib
import json

from prompt_core.backbone import Backbone
from prompt_core.data import Splits, unlabelled_inputs
from prompt_core.data.digest import frame_digest
from prompt_core.methods import UNTUNED_SETTINGS
from prompt_core.task import TaskSpec
from prompt_core.tuning.prepared import library_versions

_ABOUT_PROMPTS = ("name", "description", "owner", "prompt", "text", "gate", "drift", "deploy")


def untuned_digest(task: TaskSpec, splits: Splits, backbone: Backbone) -> str:
    """SHA-256 (64 hex characters) of all that decides what `measure_untuned` gives; how a prompt is tuned is not part of it.

    Raises:
        PromptmillError: `data.unlabelled` cannot be read.
    """
    settings = {name: value for name, value in task.without_places(backbone.identity.name).items() if name not in _ABOUT_PROMPTS}
    settings["tune"] = {name: settings["tune"][name] for name in UNTUNED_SETTINGS}
    content = [
        settings,
        splits.digest,
        frame_digest(unlabelled_inputs(task)),
        backbone.identity.model_dump(),
        library_versions(),
        backbone.device.type,
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
