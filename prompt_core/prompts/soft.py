"""`SoftPrompt`: trainable rows at the input of layer 0 (Lester et al. 2021, arXiv:2104.08691)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from prompt_core.backbone import Backbone
from prompt_core.prompts.prompt import Prompt, PromptState
from prompt_core.tokens import soft_ids


class SoftPrompt(Prompt):
    """Input embeddings that a causal model or an encoder-decoder's encoder reads in place of soft tokens.

    Args:
        backbone: a model that generates.
        embeddings: where tuning starts, [R, H]; kept in float32.
        root: the tokens in front of every example, text and soft tokens mixed; default: all soft tokens and nothing else.
    """

    def __init__(self, backbone: Backbone, embeddings: Tensor, root: Sequence[int] | None = None) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(embeddings.detach().float().clone())
        self._backbone, self._root = backbone, tuple(soft_ids(len(embeddings)) if root is None else root)

    def state(self) -> PromptState:
        return PromptState.of(self._backbone, rows=self.embeddings, root=self._root)
