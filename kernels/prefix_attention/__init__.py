"""Exact attention over a prompt forest: many short sequences behind shared prompts, packed in one row."""

from .api import prefix_attention
from .decode import PrefixTiles, decode_attention
from .forest import PromptForest
from .standing import StandingForest

__all__ = ["PrefixTiles", "PromptForest", "StandingForest", "decode_attention", "prefix_attention"]
