"""`Starts`: text prompts that the trials of a search may start from, and the folds that they were found without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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

    def without_demonstrations(self) -> Starts:
        """The same wordings, label words and templates, which show no solved examples.

        Gradients behind an example learn to copy it, or must do without it: half of 32 where a text shows 16.
        """
        return replace(self, texts=[_plain(text) for text in self.texts], whole=_plain(self.whole))


def _plain(text: TunedPrompt) -> TunedPrompt:
    assert text.manifest.text is not None  # texts are all that there is in here
    words = text.manifest.text.model_copy(update={"demonstrations": ()})
    return replace(text, manifest=text.manifest.model_copy(update={"text": words}))
