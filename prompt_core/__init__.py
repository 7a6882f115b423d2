"""Promptmill's library: from labelled examples to tuned prompts that are proven, versioned and reproducible."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_core.artifact import TunedPrompt
    from prompt_core.errors import PromptmillError
    from prompt_core.evaluation.evaluate import evaluate
    from prompt_core.store import PromptStore
    from prompt_core.task import TaskSpec
    from prompt_core.task_file import load_task
    from prompt_core.tuning.tune import tune, tune_fleet, tune_multitask

__version__ = "0.1.0"
__all__ = ["PromptStore", "PromptmillError", "TaskSpec", "TunedPrompt", "evaluate", "load_task", "tune", "tune_fleet", "tune_multitask"]

_HOME = {
    "PromptStore": "store",
    "PromptmillError": "errors",
    "TaskSpec": "task",
    "TunedPrompt": "artifact",
    "evaluate": "evaluation.evaluate",
    "load_task": "task_file",
    "tune": "tuning",
    "tune_fleet": "tuning",
    "tune_multitask": "tuning",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that the command line answers before torch is loaded."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"prompt_core.{_HOME[name]}"), name)
