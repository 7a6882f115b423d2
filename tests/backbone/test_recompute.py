"""Recomputing a model's layers leaves the model as it was."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn

from prompt_core.backbone.recompute import recomputed_layers


class _Doubling(ModelHook):
    """What accelerate puts in front of a layer, as where a device map moves its input to another GPU."""

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return (args[0] * 2,), kwargs


def test_what_accelerate_put_in_front_of_a_layer_stays_after_recomputing() -> None:
    layers = nn.ModuleList([nn.Identity(), nn.Identity()])
    add_hook_to_module(layers[0], _Doubling())
    model, x = nn.ModuleDict({"layers": layers}), torch.ones(1, requires_grad=True)

    def run() -> float:
        return float(layers[1](layers[0](x)).detach())

    for _ in range(2):
        with recomputed_layers(model, 2):
            assert run() == 2
        assert run() == 2
    assert "forward" not in vars(layers[1])
