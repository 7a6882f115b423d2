"""Tuning: from tasks and their examples to tuned prompts."""

from prompt_core.tuning.inputs import inputs_digest, is_made_of
from prompt_core.tuning.member import Step
from prompt_core.tuning.retune import Order, Retuned, retune_fleet
from prompt_core.tuning.search import SearchStep
from prompt_core.tuning.tune import tune, tune_fleet, tune_multitask

__all__ = ["Order", "Retuned", "SearchStep", "Step", "inputs_digest", "is_made_of", "retune_fleet", "tune", "tune_fleet", "tune_multitask"]
