"""A lack of memory: how it is told from other errors, and the one line that it becomes."""

from __future__ import annotations

import torch

from prompt_core.errors import PromptmillError


def is_lack_of_memory(error: Exception) -> bool:
    """PyTorch has an exception of its own for a GPU; for the CPU it is a message."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def reason_of(error: Exception) -> str:
    """What an error says, short and on one line."""
    return " ".join(str(error).split())[:120]


def no_memory(what: str, reason: str) -> PromptmillError:
    """The error of a prompt that the memory does not suffice for: `what` of it, and the `reason` that was given."""
    fix = "Free some, lower tune.max_tokens or prompt.tokens, or set tune.gradient_checkpointing."
    return PromptmillError("tuning", f"the memory does not suffice for {what} ({reason})", fix)
