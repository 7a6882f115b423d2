"""Scores of inputs behind many prompts on one frozen model: all that fit share one packed pass, each prompt's tokens in it once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.data.packing import pack
from prompt_core.encoded import Encoded
from prompt_core.prompts import PromptState, Tree, hidden_states
from prompt_core.tuning.objective import Segments

OnProgress = Callable[[int, int], None]


class Scorer(Protocol):
    """What stands behind a prompt, and its scores: a classifier's, or a tagger's."""

    def scoring_tokens(self, example: Encoded, /) -> int:
        """How many tokens an example takes in a pass."""
        ...

    def scoring_segments(self, examples: Sequence[Encoded], /) -> Segments:
        """A `Tree` over the examples."""
        ...

    def final_scores(self, states: Tensor, examples: Sequence[Encoded], /) -> Tensor | list[Tensor]:
        """The scores of each example, from the last hidden states of the segments."""
        ...


@torch.inference_mode()
def packed_scores(
    backbone: Backbone,
    rows: Sequence[tuple[PromptState, Scorer, Encoded]],
    batch_tokens: int,
    on_progress: OnProgress | None = None,
) -> list[Tensor]:
    """Score every input behind its prompt, as if it ran alone.

    Args:
        rows: prompt, scorer and input of each; any number of prompts, of any kind and length.
        batch_tokens: of a pass, its roots aside.
        on_progress: called with (finished, all).

    Returns:
        Per row, in their order, on the CPU: float32 [labels] of a classifier, [tokens, tags] of a tagger.
    """
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    number = {key: i for i, key in enumerate(dict.fromkeys((prompt, scorer) for prompt, scorer, _ in rows))}
    order = sorted(range(len(rows)), key=lambda row: number[rows[row][:2]])  # stable: inputs of one prompt stand side by side
    done = 0
    for part in pack(order, lambda row: rows[row][1].scoring_tokens(rows[row][2]), batch_tokens):
        groups = [(key, list(group)) for key, group in groupby(part, key=lambda row: rows[row][:2])]
        examples = [[rows[row][2] for row in group] for _, group in groups]
        trees = [Tree(prompt, *scorer.scoring_segments(own)) for ((prompt, scorer), _), own in zip(groups, examples, strict=True)]
        for ((_, scorer), group), own, states in zip(groups, examples, hidden_states(backbone, trees), strict=True):
            for row, scores in zip(group, scorer.final_scores(states, own), strict=True):
                found[row] = scores.cpu()
        done += len(part)
        if on_progress:
            on_progress(done, len(rows))
    return found
