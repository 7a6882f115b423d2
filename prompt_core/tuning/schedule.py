"""The learning rate over the steps: linear warm-up, then down to zero or not."""

from __future__ import annotations

import math
from typing import Literal

Decay = Literal["cosine", "linear", "constant"]


def rate_factor(step: int, steps: int, warmup: float, decay: Decay) -> float:
    """The factor on the peak rate at `step` (0-based) of `steps`, the first share `warmup` of which rise.

    `cosine` is that of Loshchilov & Hutter 2017 (arXiv:1608.03983).
    """
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    gone = (step - rising) / max(1, steps - rising)
    return {"cosine": 0.5 * (1 + math.cos(math.pi * gone)), "linear": 1 - gone, "constant": 1.0}[decay]
