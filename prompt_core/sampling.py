"""How the next token of a text is chosen: the most likely one, or one drawn by a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_HEAD = 1024  # tokens that nearly always hold what is drawn from


@dataclass(frozen=True, eq=False)
class Sampling:
    """How tokens are drawn. A row's draws depend on its seed alone, not on what is generated beside it.

    Attributes:
        seeds: one per input.
        temperature: above 0; the logits are divided by it.
        top_p: draw from the likeliest tokens that hold this share of the probability together (Holtzman et al. 2020,
            arXiv:1904.09751).
    """

    seeds: Sequence[int]
    temperature: float = 1.0
    top_p: float = 1.0

    def uniforms(self, row: int, steps: int) -> Tensor:
        """The numbers in [0, 1) that an input's tokens are drawn with, float64 [steps]."""
        return torch.rand(steps, generator=torch.Generator().manual_seed(self.seeds[row]), dtype=torch.float64)

    def draw(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Token ids [B] of logits [B, V], each where its number falls among the chances in the order of the vocabulary.

        In that order rounding, which differs with what stands beside a row, moves a boundary by as much as a chance; in
        the order of the chances it would exchange tokens.
        """
        chances = (logits.float() / self.temperature).softmax(-1)
        if self.top_p < 1:
            chances = chances.where(chances >= self._least(chances), 0.0)
        upto = chances.double().cumsum(-1)
        place = torch.searchsorted(upto, uniforms[:, None].to(upto.device) * upto[:, -1:], right=True)
        return place.clamp(max=chances.shape[-1] - 1)[:, 0]

    def _least(self, chances: Tensor) -> Tensor:
        """The smallest chance that is drawn from, [B, 1]."""
        likely = chances.topk(min(_HEAD, chances.shape[-1]), dim=-1).values
        if bool((likely.double().sum(-1) < self.top_p).any()):
            likely = chances.sort(dim=-1, descending=True).values
        upto = likely.double().cumsum(-1)
        return likely.gather(1, (upto - likely < self.top_p).sum(-1, keepdim=True) - 1)
