"""Racing: candidates meet the examples block by block, and one that a paired test shows to be worse leaves early.

Zehle et al. 2025 (CAPO, arXiv:2504.16005), after F-race (Birattari et al. 2002): a bad candidate costs a few examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ttest_rel

Values = NDArray[np.float64]
ScoreBlock = Callable[[Sequence[int], Sequence[int]], Sequence[Values]]


def race(candidates: int, blocks: Sequence[Sequence[int]], score: ScoreBlock, keep: int, alpha: float = 0.2) -> list[Values]:
    """Score candidates on blocks of examples until the examples or the doubts end.

    Args:
        candidates: how many.
        blocks: numbers of the examples of each block.
        score: from numbers of candidates and of examples to each candidate's values, float64 [examples]; more is better.
            NaN where a candidate must not be judged by an example, which it shows as a demonstration.
        keep: so many candidates stay, whatever the tests say.
        alpha: level of the paired one-sided t-test by which a candidate is worse than the best one.

    Returns:
        The values of each candidate on the examples that it met, in the order of the blocks.
    """
    values: list[Values] = [np.empty(0) for _ in range(candidates)]
    alive = list(range(candidates))
    for number, block in enumerate(blocks):
        for candidate, scored in zip(alive, score(alive, block), strict=True):
            values[candidate] = np.concatenate([values[candidate], scored])
        if number + 1 < len(blocks):
            alive = _survivors(alive, values, keep, alpha)
    return values


def mean(values: Values) -> float:
    """Over the examples that judge; minus infinity where none does."""
    judging = values[~np.isnan(values)]
    return float(judging.mean()) if len(judging) else -np.inf


def _survivors(alive: Sequence[int], values: Sequence[Values], keep: int, alpha: float) -> list[int]:
    ranked = sorted(alive, key=lambda candidate: -mean(values[candidate]))
    best = values[ranked[0]]
    return sorted(candidate for rank, candidate in enumerate(ranked) if rank < keep or not _worse(values[candidate], best, alpha))


def _worse(values: Values, best: Values, alpha: float) -> bool:
    gaps = best - values
    gaps = gaps[~np.isnan(gaps)]
    if len(gaps) < 2 or np.ptp(gaps) == 0:  # the test divides by their spread
        return bool(len(gaps) > 0 and gaps[0] > 0)
    return bool(ttest_rel(gaps, np.zeros_like(gaps), alternative="greater").pvalue < alpha)
