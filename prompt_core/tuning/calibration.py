"""Calibration: what a classifier expects of its labels before it reads an input, measured where nobody looks at the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prompt_core.data.packing import pack
from prompt_core.encoded import Encoded

Scores = Callable[[Sequence[Encoded]], Tensor]


@dataclass(frozen=True, eq=False)
class Calibration:
    """What labels are calibrated on beside the training inputs, and how many tokens a pass takes."""

    inputs: Sequence[Encoded]
    batch_tokens: int


@torch.no_grad()
def mean_log_chances(scores: Scores, inputs: Sequence[Encoded], tokens: Callable[[Encoded], int], batch_tokens: int) -> Tensor:
    """Each label's mean log-probability over inputs; subtracted from its score, no label is preferred whatever is read.

    A model's preference for a label was first measured on an input without content (Zhao et al. 2021, arXiv:2102.09690);
    on real inputs it is batch calibration (Zhou et al. 2023, arXiv:2309.17249). It takes the labels to be about equally
    frequent.

    Args:
        scores: uncalibrated scores of inputs, [n, labels]; their softmax is the labels' probabilities.
        inputs: at least one.
        tokens: what an input takes of a pass of `batch_tokens`.

    Returns:
        float32 [labels].
    """
    return torch.cat([scores(batch).log_softmax(-1) for batch in pack(inputs, tokens, batch_tokens)]).mean(0)
