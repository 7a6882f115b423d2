"""Racing: who leaves, what it costs, and that the best one stays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prompt_core.text.race import Values, mean, race


def test_a_clearly_worse_candidate_meets_one_block_only() -> None:
    quality = np.array([0.9, 0.1, 0.85])
    noise = np.random.default_rng(0).normal(0, 0.02, (3, 64))
    asked: list[tuple[int, int]] = []

    def score(alive: Sequence[int], block: Sequence[int]) -> list[Values]:
        asked.extend((candidate, len(block)) for candidate in alive)
        return [quality[candidate] + noise[candidate, list(block)] for candidate in alive]

    values = race(3, [range(i, i + 16) for i in range(0, 64, 16)], score, keep=1)
    assert next(len(own) for own in values) == 64 and len(values[1]) == 16
    assert sum(size for candidate, size in asked if candidate == 1) == 16
    assert max(range(3), key=lambda i: (len(values[i]), mean(values[i]))) == 0


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 3), st.randoms(use_true_random=False))
def test_at_least_as_many_as_asked_for_meet_every_example(candidates: int, blocks: int, keep: int, random: object) -> None:
    table = np.random.default_rng(candidates * 31 + blocks).normal(size=(candidates, blocks * 4))
    values = race(
        candidates,
        [range(4 * i, 4 * i + 4) for i in range(blocks)],
        lambda alive, block: [table[candidate, list(block)] for candidate in alive],
        keep,
    )
    assert sum(len(own) == blocks * 4 for own in values) >= min(keep, candidates)
    for candidate, own in enumerate(values):
        assert np.array_equal(own, table[candidate, : len(own)])


def test_rows_that_a_candidate_shows_do_not_judge_it() -> None:
    shown = np.array([np.nan, np.nan, 1.0, 1.0])
    values = race(2, [range(4)], lambda alive, block: [shown, np.full(4, 0.5)], keep=1)
    assert mean(values[0]) == 1.0 and mean(np.array([np.nan])) == -np.inf
