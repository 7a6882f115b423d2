"""No overfitting by copying: whether a wording repeats a training example."""

from __future__ import annotations

import re
from collections.abc import Iterable

LONGEST_COPY = 7  # consecutive words; one more is a copy

_WORDS = re.compile(r"\w+")


class Copies:
    """The runs of words of a training split, to check wordings against.

    Args:
        texts: all texts of the training examples, fields and targets.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._runs = {run for text in texts for run in _runs(text)}

    def in_wording(self, wording: str) -> str | None:
        """The first run of 8 consecutive words that the wording has from a training example; None if there is none."""
        return next((" ".join(run) for run in _runs(wording) if run in self._runs), None)


def _runs(text: str) -> list[tuple[str, ...]]:
    words = _WORDS.findall(text.lower())
    length = LONGEST_COPY + 1
    return [tuple(words[i : i + length]) for i in range(len(words) - length + 1)]
