"""What is tuned: prompts as trainable modules, where they start from, and how a packed batch meets them."""

from prompt_core.prompts.compaction import Compactions
from prompt_core.prompts.deep import DeepPrefix
from prompt_core.prompts.multitask import MultitaskPrompt
from prompt_core.prompts.packed import hidden_states, lower
from prompt_core.prompts.padded import encoder_states
from prompt_core.prompts.prompt import Prompt, PromptState
from prompt_core.prompts.reparameterised import Reparameterised
from prompt_core.prompts.soft import SoftPrompt
from prompt_core.prompts.start import Context, starting_prompt
from prompt_core.prompts.tree import Tree

__all__ = [
    "Compactions",
    "Context",
    "DeepPrefix",
    "MultitaskPrompt",
    "Prompt",
    "PromptState",
    "Reparameterised",
    "SoftPrompt",
    "Tree",
    "encoder_states",
    "hidden_states",
    "lower",
    "starting_prompt",
]
