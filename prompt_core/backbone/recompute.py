"""Gradient checkpointing of a frozen model's layers (Chen et al. 2016, arXiv:1604.06174), whatever its own class offers.

transformers ties its own to training mode, in which a model also drops out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def recomputed_layers(base: nn.Module, layers: int) -> Iterator[None]:
    """Within it a backward pass computes each layer again instead of finding its inner states kept.

    Args:
        base: a model with its layers in one ModuleList.
        layers: how many they are.
    """
    stack: Any = next(module for module in base.modules() if isinstance(module, nn.ModuleList) and len(module) == layers)
    before = [vars(layer).get("forward") for layer in stack]  # accelerate's, where a device map moves weights around
    for layer in stack:
        # The prompt's keys and values travel in a keyword argument: only the non-reentrant kind sees their gradients.
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer, forward in zip(stack, before, strict=True):
            if forward is None:
                del layer.forward
            else:
                layer.forward = forward
