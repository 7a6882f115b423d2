"""What a frozen model sees of a prompt, and the base of the modules that produce it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prompt_core.backbone import Backbone


@dataclass(frozen=True, eq=False)
class PromptState:
    """A prompt as the model sees it: at one step of its tuning, restored from an artifact, or as plain text.

    Attributes:
        rows: what the soft tokens stand for, [R, H]. Among token ids -1 - j is soft token j, anywhere and any number
            of times: in the root, which all examples share, or inside an example.
        root: ids of the tokens in front of every example; empty for none.
        keys, values: keys and values before the root in every layer, each [L, P, Hkv, D]; P may be 0.
    """

    rows: Tensor
    root: tuple[int, ...]
    keys: Tensor
    values: Tensor

    @classmethod
    def of(
        cls,
        backbone: Backbone,
        *,
        rows: Tensor | None = None,
        root: Sequence[int] = (),
        keys: Tensor | None = None,
        values: Tensor | None = None,
    ) -> PromptState:
        """A state of the parts that there are; without any it is no prompt at all. A text prompt is its `root` alone."""
        none = torch.empty(backbone.num_layers, 0, backbone.num_kv_heads, backbone.head_dim, device=backbone.device)
        rows = torch.empty(0, backbone.hidden_size, device=backbone.device) if rows is None else rows
        return cls(rows, tuple(root), none if keys is None else keys, none if values is None else values)


class Prompt(nn.Module, ABC):
    """A trainable prompt. Its parameters are what is optimised, its state is what the model sees and the artifact keeps."""

    @abstractmethod
    def state(self) -> PromptState:
        """The prompt as the model sees it, differentiable in the parameters; evaluated once per step."""

    def units(self) -> dict[nn.Parameter, Tensor]:
        """How far a learning rate of 1 moves a parameter, of a shape that broadcasts to its; 1 for those that are not named."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """What the artifact keeps, float32 on the CPU: of `embeddings` [R, H], `keys` and `values` [L, P, Hkv, D] those that there are."""
        state = self.state()
        kept = {"embeddings": state.rows, "keys": state.keys, "values": state.values}
        return {name: tensor.detach().float().cpu() for name, tensor in kept.items() if tensor.numel()}
