"""The Triton backend: fused forward and backward over a forest's tile plan."""

from .launch import backward, forward

__all__ = ["backward", "forward"]
