"""Which solved examples stand in front of an input: how many of which labels, which ones, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Literal

import torch
from torch import Tensor

Choice = Literal["random", "diverse", "typical"]
CHOICES: tuple[Choice, ...] = ("random", "diverse", "typical")


def chosen(ids: Sequence[str], labels: Sequence[str], features: Tensor, count: int, choice: Choice, random: Random) -> tuple[str, ...]:
    """Ids of training rows to show, as many of each label as `count` admits, in a shuffled order.

    Args:
        ids: of the training rows.
        labels: of each row; all equal where there are none.
        features: unit-length features of each row, [n, H], see `features_of`.
        count: how many to show.
        choice: at random; such that each is far from those before it; or those nearest to their label's mean.
        random: the stream that chooses and shuffles.
    """
    by_label: dict[str, list[int]] = {}
    for number, label in enumerate(labels):
        by_label.setdefault(label, []).append(number)
    queues = [_ordered(numbers, features, choice, random) for _, numbers in sorted(by_label.items())]
    random.shuffle(queues)  # which label gets one more, where count is no multiple
    taken = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)][:count]
    random.shuffle(taken)
    return tuple(ids[number] for number in taken)


def _ordered(numbers: Sequence[int], features: Tensor, choice: Choice, random: Random) -> list[int]:
    """Rows of one label, the first to be shown first."""
    mixed = list(numbers)
    random.shuffle(mixed)
    if choice == "random":
        return mixed
    own = features[torch.tensor(mixed)]
    if choice == "typical":
        return [mixed[i] for i in (own @ own.mean(0)).argsort(descending=True, stable=True).tolist()]
    taken = [0]
    nearest = own @ own[0]
    for _ in range(len(mixed) - 1):  # farthest-point traversal (Gonzalez 1985)
        nearest[taken[-1]] = torch.inf
        following = int(nearest.argmin())
        taken.append(following)
        nearest = torch.maximum(nearest, own @ own[following])
    return [mixed[i] for i in taken]
