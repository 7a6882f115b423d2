"""Tuning: from tasks and their examples to tuned prompts."""

from prompt_core.tuning.member import Step
from prompt_core.tuning.search import SearchStep
from prompt_core.tuning.tune import tune, tune_fleet, tune_multitask

__all__ = ["SearchStep", "Step", "tune", "tune_fleet", "tune_multitask"]
