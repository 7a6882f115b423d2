"""Which solved examples stand in front of an input: how many of which labels, which ones, in which order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import zip_longest
from random import Random

import torch
from torch import Tensor

from prompt_core.text.spec import Choice


def chosen(ids: Sequence[str], labels: Sequence[str], features: Tensor, count: int, choice: Choice, random: Random) -> tuple[str, ...]:
    """Ids of training rows to show, as many of each label as `count` admits, in a shuffled order.

    Args:
        ids: of the training rows, each once.
        labels: of each row; all equal where there are none.
        features: unit-length features of each row, [n, H], see `features_of`.
        count: how many to show.
        choice: at random; such that each is far from those before it; or those nearest to their label's mean.
        random: the stream that chooses and shuffles.
    """
    queues = [_ordered(numbers, features, choice, random) for numbers in _by_label(labels)]
    random.shuffle(queues)  # which label gets one more, where count is no multiple
    taken = _in_turn(queues)[:count]
    random.shuffle(taken)
    return tuple(ids[number] for number in taken)


def exemplars(ids: Sequence[str], labels: Sequence[str], features: Tensor, each: int, choice: Choice, random: Random) -> tuple[str, ...]:
    """Ids of at most `each` rows of every label, label by label in the order of the rows; else as `chosen`."""
    taken = [sorted(_ordered(numbers, features, choice, random)[:each]) for numbers in _by_label(labels)]
    return tuple(ids[number] for numbers in taken for number in numbers)


def nearest(pool: Tensor, labels: Sequence[str], query: Tensor, count: int, balanced: bool, without: Collection[int] = ()) -> list[int]:
    """Numbers of the rows nearest to a query, the nearest last: next to the input (Liu et al. 2022, arXiv:2101.06804).

    Args:
        pool: unit-length features of the rows, [n, H].
        labels: of each row; all equal where there are none.
        query: its features, [H].
        count: how many.
        balanced: whether the labels take turns, that of the nearest row first.
        without: numbers of rows that are not to be shown: the query itself.
    """
    ranked = [number for number in (pool @ query).argsort(descending=True, stable=True).tolist() if number not in without]
    if balanced:
        queues: dict[str, list[int]] = {}
        for number in ranked:
            queues.setdefault(labels[number], []).append(number)
        ranked = _in_turn(list(queues.values()))
    return ranked[:count][::-1]


def _by_label(labels: Sequence[str]) -> list[list[int]]:
    """The rows of each label, by the labels' names."""
    rows: dict[str, list[int]] = {}
    for number, label in enumerate(labels):
        rows.setdefault(label, []).append(number)
    return [numbers for _, numbers in sorted(rows.items())]


def _in_turn(queues: Sequence[Sequence[int]]) -> list[int]:
    """The first of every queue, then the second, and so on."""
    return [number for turn in zip_longest(*queues) for number in turn if number is not None]


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
