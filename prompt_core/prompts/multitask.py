"""`MultitaskPrompt`: one prompt for many tasks, with a low-rank factor for each (Wang et al. 2023, arXiv:2303.02861)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from prompt_core.backbone import Backbone
from prompt_core.prompts.prompt import Prompt, PromptState


class MultitaskPrompt(Prompt):
    """A soft prompt that is the product of rows shared with other tasks and a factor of rank one of its own.

    Args:
        backbone: a model that generates.
        shared: the rows that all tasks train together, [R, H], float32: the very same parameter in each of their prompts.
        root: the tokens in front of every example of this task.
    """

    def __init__(self, backbone: Backbone, shared: nn.Parameter, root: Sequence[int]) -> None:
        super().__init__()
        self.shared = shared
        self.by_token = nn.Parameter(torch.ones(len(shared), 1, device=shared.device))
        self.by_width = nn.Parameter(torch.ones(1, shared.shape[1], device=shared.device))
        self._backbone, self._root = backbone, tuple(root)

    def state(self) -> PromptState:
        return PromptState.of(self._backbone, rows=self.shared * (self.by_token @ self.by_width), root=self._root)
