"""How long an input may be, so that what stands in front of and behind it has positions on the model too."""

from __future__ import annotations

from prompt_core.backbone import Backbone, EncoderDecoder
from prompt_core.prompts import PromptState
from prompt_core.tuning.objective import Objective


def room_for_input(backbone: Backbone, prompt: PromptState, objective: Objective | None = None, new_tokens: int = 0, shown: int = 0) -> int:
    """Tokens that an input may have.

    Args:
        prompt: what stands in front of all inputs.
        objective: whose labels are scored behind an input, if any are; None for what writes.
        new_tokens: what is written behind it; at most half of what is left is kept free for them.
        shown: tokens of demonstrations that stand in front of this input alone.
    """
    if not backbone.generates:  # an encoder's prefix takes no positions
        return backbone.max_positions
    left = backbone.max_positions - len(prompt.root)
    if isinstance(backbone, EncoderDecoder):  # nor does that one's, and what is written has its own
        return left
    left -= prompt.keys.shape[1] + shown
    behind = objective.label_tokens if objective else 0
    return left - behind - min(new_tokens, left // 2)  # a text that may be longer ends earlier behind a long input
