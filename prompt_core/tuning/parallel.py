"""Data parallel tuning: each process of a torch.distributed group takes its share of every batch; sums are exchanged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from prompt_core.errors import PromptmillError

T = TypeVar("T")
_LONGEST_WAIT = timedelta(days=7)  # for the first process, while it searches words; torchrun ends the others where it dies


@contextmanager
def process_group() -> Iterator[bool]:
    """Join the group that torchrun describes, if there is one; gives whether this process is the one that writes and prints."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield True
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=_LONGEST_WAIT)
    try:
        yield dist.get_rank() == 0
    finally:
        dist.destroy_process_group()


def is_writer() -> bool:
    """Whether this process writes what all have."""
    return not dist.is_initialized() or dist.get_rank() == 0


def by_first(make: Callable[[], T]) -> T:
    """What the first process of the group makes, for all: what costs money or ends by a clock is done once.

    Raises:
        PromptmillError: in every process, where the first one raises it.
    """
    if not dist.is_initialized():
        return make()
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = make()
        except PromptmillError as error:
            outcome[1] = type(error), error.where, error.what, error.fix
    dist.broadcast_object_list(outcome, 0)
    made, failed = outcome
    if failed:
        kind, *about = failed
        raise kind(*about)
    return made  # type: ignore[no-any-return]  # of the type that was made


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
