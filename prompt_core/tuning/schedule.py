"""The learning rate over the steps: linear warm-up, then a cosine to zero (Loshchilov & Hutter 2017, arXiv:1608.03983)."""

from __future__ import annotations

import math


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """The factor on the peak rate at `step` (0-based) of `steps`, the first share `warmup` of which rise."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
