"""What is tuned: prompts as trainable modules, where they start from, and how a packed batch meets them."""

from prompt_core.prompts.deep import DeepPrefix, lower, no_prompt
from prompt_core.prompts.soft import SoftPrompt
from prompt_core.prompts.start import starting_prompt

Prompt = SoftPrompt | DeepPrefix

__all__ = ["DeepPrefix", "Prompt", "SoftPrompt", "lower", "no_prompt", "starting_prompt"]
