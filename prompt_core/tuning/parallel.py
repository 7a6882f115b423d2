"""Data parallel tuning: each process of a torch.distributed group takes its share of every batch; sums are exchanged."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@contextmanager
def process_group() -> Iterator[bool]:
    """Join the group that torchrun describes, if there is one; gives whether this process is the one that writes and prints."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield True
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield dist.get_rank() == 0
    finally:
        dist.destroy_process_group()


def is_writer() -> bool:
    """Whether this process writes what all have."""
    return not dist.is_initialized() or dist.get_rank() == 0


def share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of a batch; all of it without a group."""
    return items[dist.get_rank() :: dist.get_world_size()] if dist.is_initialized() else items


def add_up(tensors: Sequence[Tensor]) -> None:
    """Sum each tensor over all processes, in place."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.all_reduce(tensor)


def agreed(decision: bool) -> bool:
    """What the first process of the group decided: clocks differ, and all have to do the same."""
    if not dist.is_initialized():
        return decision
    shared = torch.tensor([decision], dtype=torch.int32, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.broadcast(shared, 0)
    return bool(shared.item())
