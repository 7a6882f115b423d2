"""What a test set can show before anything is tuned: the smallest gain for so many rows."""

from __future__ import annotations

import math

import numpy as np

from prompt_core.evaluation.metrics import is_binary
from prompt_core.task import TaskSpec

_SPREAD = 20.0  # points: a usual standard deviation, over rows, of the difference of two prompts' chrF, ROUGE-L or facts kept


def smallest_gain(test_rows: int, alpha: float = 0.01, lost: float = 0.01) -> float | None:
    """The smallest gain in accuracy, in points, that McNemar's test can show with so many test rows.

    Args:
        lost: the assumption: this share of the rows, which the other side has right, the better side gets wrong. More of
            them, and the gain must be larger.

    Returns:
        None where even a win in every other row shows nothing.
    """
    from scipy.stats import binom

    losses = round(lost * test_rows)
    wins = np.arange(losses, test_rows - losses + 1)
    shown = wins[binom.sf(wins - 1, wins + losses, 0.5) < alpha]
    return float(100 * (shown[0] - losses) / test_rows) if len(shown) else None


def smallest_mean_gain(test_rows: int, alpha: float = 0.01, spread: float = _SPREAD) -> float:
    """The smallest gain in the mean of scores, in points, that a paired test can show with so many test rows.

    Args:
        spread: the assumption: standard deviation of the rows' differences, in points.
    """
    from scipy.stats import norm

    return float(norm.isf(alpha) * spread / math.sqrt(test_rows))


def power_sentence(task: TaskSpec, test_rows: int) -> str:
    """For people, before tuning: "100 test rows can show a gain of 9 points or more in accuracy (p below 0.01)"."""
    if not test_rows:
        return "no test rows: no gain can be shown"
    metric, alpha = task.gate_metric, task.gate.alpha
    counted = is_binary(metric) or metric in ("macro_f1", "entity_f1")  # F1 moves by about as much as its rows do
    gain = smallest_gain(test_rows, alpha) if counted else smallest_mean_gain(test_rows, alpha)
    if gain is None or gain > 100:
        return f"{test_rows} test rows cannot show any gain in {metric} (p below {alpha:g}): add test rows"
    about = "" if is_binary(metric) else "about "
    assumed = "" if counted else f", where rows differ by {_SPREAD:g} points (standard deviation)"
    return f"{test_rows} test rows can show a gain of {about}{_up(gain)} points or more in {metric} (p below {alpha:g}){assumed}"


def _up(gain: float) -> str:
    """Rounded up to a tenth, so that what is said can be shown."""
    return f"{math.ceil(round(10 * gain, 6)) / 10:g}"
