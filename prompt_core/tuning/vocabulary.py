"""Label words tuned as generation is: the loss over the vocabulary, the prediction still by the labels' scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.encoded import Encoded
from prompt_core.tuning.objective import Generation, LabelWords, Segments


class VocabularyWords(LabelWords):
    """Classification with a causal model: cross-entropy of the right label's tokens over the whole vocabulary.

    A pass that tunes holds the right label's branch alone, one that scores those of all labels.

    Args:
        words, normalised, smoothing: as for `LabelWords`; the smoothing is over the vocabulary.
    """

    def __init__(self, backbone: Backbone, words: Sequence[Sequence[int]], normalised: bool = True, smoothing: float = 0.0) -> None:
        super().__init__(backbone, words, normalised)
        self._words = [tuple(ids) for ids in words]
        self._generation = Generation(backbone, smoothing)

    def weight(self, example: Encoded) -> int:
        return self._generation.weight(self._spoken(example))

    def tokens(self, example: Encoded) -> int:
        return self._generation.tokens(self._spoken(example))

    def segments(self, examples: Sequence[Encoded]) -> Segments:
        return self._generation.segments([self._spoken(example) for example in examples])

    def loss(self, states: Tensor, examples: Sequence[Encoded]) -> Tensor:
        return self._generation.loss(states, [self._spoken(example) for example in examples])

    def scoring_tokens(self, example: Encoded) -> int:
        return super().tokens(example)

    def scoring_segments(self, examples: Sequence[Encoded]) -> Segments:
        return super().segments(examples)

    def _spoken(self, example: Encoded) -> Encoded:
        """The example with its label's tokens as the target."""
        return replace(example, target=self._words[example.target[0]])
