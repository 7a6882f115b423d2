"""Intervals and paired tests: is one prompt better than another on the same test rows, and by how much.

Sources: the bootstrap and its percentile interval, Efron (1979) and Efron & Tibshirani (1993, ch. 13); its paired form for text
metrics, Koehn (2004); approximate randomization, Noreen (1989), for text metrics Riezler & Maxwell (2005); McNemar (1947), in its
exact form; the interval of a share, Clopper & Pearson (1934); many tests at once, Holm (1979).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from prompt_core.criteria import Metric
from prompt_core.evaluation.metrics import Floats, Pooled, is_binary, pooled
from prompt_core.evaluation.wanted import Texts, Wanted

RESAMPLES = 10_000
_SEED = 0
_CHUNK = 2**20  # draws at a time: 8 MB
_SAME = 1e-9  # points; sums in another order differ by less, real gains by more


class Record(BaseModel):
    """Base of the evaluation's parts: plain data, frozen, exact through JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Interval(Record):
    """A confidence interval, in points."""

    low: float
    high: float


class Measured(Record):
    """A metric's reported value and its 95 % interval, in points."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, measured: Pooled, around: Interval) -> Measured:
        """The value with the interval around it."""
        return cls(value=round(measured.reported, 6), low=around.low, high=around.high)


class Comparison(Record):
    """Ours against theirs on the same rows.

    Attributes:
        gain: ours minus theirs, in points.
        low, high: 95 % interval of the gain.
        p_better: one-sided p value of "ours is better"; small means shown.
        p_worse: the same of "ours is worse".
        test: the test that gave the p values.
    """

    gain: float
    low: float
    high: float
    p_better: float
    p_worse: float
    test: str


def interval(measured: Pooled, level: float = 0.95) -> Interval:
    """The interval of the reported value: exact where a row is right or wrong, else by bootstrap."""
    return (exact_interval if is_binary(measured.metric) else bootstrap_interval)(measured, level)


def bootstrap_interval(measured: Pooled, level: float = 0.95) -> Interval:
    """Percentile interval over 10,000 resamples of the rows, with a fixed seed."""
    return _percentiles(measured.value(_resampled_sums(measured.rows)), level)


def exact_interval(measured: Pooled, level: float = 0.95) -> Interval:
    """Clopper-Pearson interval of the share of right rows. Unlike the bootstrap's, it leaves room for doubt at 20 of 20."""
    from scipy.stats import binomtest

    right = _right(measured)
    found = binomtest(int(right.sum()), len(right)).proportion_ci(level, method="exact")
    return Interval(low=_points(100 * found.low), high=_points(100 * found.high))


def compare(metric: Metric, ours: Texts, theirs: Texts, targets: Texts, wanted: Wanted | None = None) -> Comparison:
    """Test two lists of predictions for the same rows against each other; `compare_pooled` says how.

    Raises:
        ValueError: the lengths differ, or there are no rows or no facts.
    """
    return compare_pooled(pooled(metric, ours, targets, wanted), pooled(metric, theirs, targets, wanted))


def compare_pooled(ours: Pooled, theirs: Pooled) -> Comparison:
    """Test two measurements of one metric on the same rows against each other.

    The interval is a paired bootstrap of the reported value itself: corpus BLEU and macro-F1 are recomputed for each resample
    from counts that add up. The p values are McNemar's where a row is right or wrong, else those of a paired randomization: were
    both equally good, each row's two outputs could as well be exchanged, and (k + 1) / (n + 1) is the share of exchanges that gain
    as much (Davison & Hinkley 1997, ch. 4). A bootstrap's would call any gain shown that all of a handful of rows have.
    """
    ours_sums, theirs_sums = np.split(_resampled_sums(np.concatenate([ours.rows, theirs.rows], axis=1)), 2, axis=1)
    gains = ours.value(ours_sums) - theirs.value(theirs_sums)
    around = _percentiles(gains, 0.95)
    if is_binary(ours.metric):
        test, (p_better, p_worse) = "exact McNemar test", mcnemar(_right(ours), _right(theirs))
    else:
        test, (p_better, p_worse) = "paired randomization test", randomization(ours, theirs)
    gain = _points(ours.reported - theirs.reported)
    return Comparison(gain=gain, low=around.low, high=around.high, p_better=p_better, p_worse=p_worse, test=test)


def mcnemar(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> tuple[float, float]:
    """One-sided exact p values (better, worse) from the rows that exactly one side has right; 1 and 1 where there are none.

    Args:
        ours, theirs: bool [N], whether the row is right.
    """
    from scipy.stats import binomtest

    won, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    if won + lost == 0:
        return 1.0, 1.0
    return float(binomtest(won, won + lost, alternative="greater").pvalue), float(binomtest(won, won + lost, alternative="less").pvalue)


def randomization(ours: Pooled, theirs: Pooled) -> tuple[float, float]:
    """One-sided p values (better, worse) from 10,000 random exchanges of the two sides' rows, with a fixed seed."""
    ours_sums, theirs_sums = ours.rows.sum(axis=0), theirs.rows.sum(axis=0)
    moves, counts = np.unique(theirs.rows - ours.rows, axis=0, return_counts=True)
    generator, at_a_time = np.random.default_rng(_SEED), max(1, _CHUNK // len(counts))
    sizes = [min(at_a_time, RESAMPLES - start) for start in range(0, RESAMPLES, at_a_time)]
    # Of rows that move alike it only matters how many are exchanged.
    exchanged = np.concatenate([generator.binomial(counts, 0.5, size=(size, len(counts))) @ moves for size in sizes])
    gain = ours.value(ours_sums) - theirs.value(theirs_sums)
    gains = ours.value(ours_sums + exchanged) - theirs.value(theirs_sums - exchanged)
    # Said so that what is no number shows nothing.
    better, worse = int((~(gains < gain - _SAME)).sum()), int((~(gains > gain + _SAME)).sum())
    return (1 + better) / (1 + RESAMPLES), (1 + worse) / (1 + RESAMPLES)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values in the order given (Holm 1979): the smallest times n, the next times n - 1, ..., none below one before it."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, number in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[number]))
        adjusted[number] = largest
    return adjusted


def _resampled_sums(rows: Floats) -> Floats:
    """Sums over resamples of the rows, drawn with replacement: [N, K] -> [10000, K].

    Equal rows are counted, not repeated, so that right-or-wrong metrics and confusion counts cost a small matrix product.
    """
    distinct, group = np.unique(rows, axis=0, return_inverse=True)
    return np.concatenate([counts @ distinct for counts in _resampled_counts(group.ravel(), len(distinct))])


def _resampled_counts(group: NDArray[np.intp], groups: int) -> Iterator[Floats]:
    """How often each group of rows is drawn, float64 [chunk, groups], until all resamples are made."""
    generator = np.random.default_rng(_SEED)
    at_a_time = max(1, _CHUNK // len(group))
    for start in range(0, RESAMPLES, at_a_time):
        size = min(at_a_time, RESAMPLES - start)
        drawn = group[generator.integers(len(group), size=(size, len(group)))] + groups * np.arange(size)[:, None]
        yield np.bincount(drawn.ravel(), minlength=size * groups).reshape(size, groups).astype(np.float64)


def _right(measured: Pooled) -> NDArray[np.bool_]:
    """Which rows of a right-or-wrong metric are right, bool [N]; its first statistic is the score."""
    return measured.rows[:, 0] > 0


def _percentiles(values: Floats, level: float) -> Interval:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=_points(low), high=_points(high))


def _points(value: float) -> float:
    """Rounded to a millionth of a point: the order of summation, which differs between processors, leaves no trace."""
    return round(float(value), 6) + 0.0  # + 0.0: no minus before a zero
