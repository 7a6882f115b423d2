"""Tuning: from a task and its examples to a tuned prompt."""

from prompt_core.tuning.gradient import Step
from prompt_core.tuning.tune import tune

__all__ = ["Step", "tune"]
