"""`Starts`: text prompts that the trials of a search may start from, and the folds that they were found without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prompt_core.artifact import TunedPrompt


@dataclass(frozen=True, eq=False)
class Starts:
    """What a search over settings takes over from a search for words.

    Attributes:
        folds: row numbers that each fold holds out, of what `join_sides` gives.
        texts: for each fold the text prompt that was found without its rows.
        whole: what the final tuning starts from.
        seconds: what finding them took; the time of the search counts from there.
    """

    folds: Sequence[Sequence[int]]
    texts: Sequence[TunedPrompt]
    whole: TunedPrompt
    seconds: float
