"""A prompt made ready to answer on its frozen model: encodes inputs, and says what is asked of the model and what that means."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone, EncoderDecoder
from prompt_core.encoded import Encoded, Located
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError
from prompt_core.extraction.original import in_original
from prompt_core.inputs import Input, Inputs, as_fields, as_list, read_input
from prompt_core.prediction import encoding_of, restore, restore_classifier, restore_tagger
from prompt_core.prompts import PromptState, lower
from prompt_core.room import room_for_input
from prompt_core.sampling import Sampling
from prompt_core.text.index import Retriever
from prompt_core.text.score import behind
from prompt_core.tuning.build import build_classifier
from prompt_core.tuning.objective import Classification
from prompt_core.tuning.tags import TokenTags, answer_of
from prompt_core.writing import Text


@dataclass(frozen=True)
class Answer:
    """What a prompt answers to an input.

    Attributes:
        text: the label, the generated text, or the entities as a JSON list.
        score: how sure the model is, in (0, 1]: the label's probability among the labels, or the geometric mean of the
            probabilities of a text's tokens; None for entities.
    """

    text: str
    score: float | None


@dataclass(frozen=True, eq=False)
class ReadyPrompt:
    """A prompt restored on its frozen model.

    Attributes:
        name: the prompt's.
        backbone: the frozen model.
        encoding: from fields to tokens.
        state: what stands in front of every input; for a causal model its root is read already.
        scorer: what reads labels or tags from hidden states; None where the model writes.
        labels: of a classifier or tagger.
        max_new_tokens: where a text ends at the latest; 0 where none is written.
        beams: of the search for a text that is not drawn.
        batch_tokens: of a pass that scores.
        retriever: of demonstrations for each input; None where all have the same or none.
    """

    name: str
    backbone: Backbone
    encoding: TaskEncoding
    state: PromptState
    scorer: Classification | TokenTags | None
    labels: tuple[str, ...]
    max_new_tokens: int
    beams: int
    batch_tokens: int
    retriever: Retriever | None = None

    @classmethod
    def of(cls, prompt: TunedPrompt, backbone: Backbone) -> ReadyPrompt:
        """A tuned prompt.

        Raises:
            PromptmillError: the backbone is not the one that it was tuned on.
        """
        prompt.check_base(backbone.identity)
        encoding = encoding_of(prompt, backbone)
        scorer: Classification | TokenTags | None = None
        if prompt.task.tags:
            scorer = restore_tagger(prompt, backbone)
        elif not prompt.task.writes:
            scorer = restore_classifier(prompt, encoding, backbone)
        retrieves = prompt.manifest.text is not None and prompt.manifest.text.retrieval is not None
        retriever = Retriever(prompt, backbone) if retrieves else None
        return cls._with(prompt, encoding, restore(prompt, encoding, backbone), scorer, backbone, retriever)

    @classmethod
    def untuned(cls, prompt: TunedPrompt, backbone: Backbone) -> ReadyPrompt:
        """What the model answers without it: the template's own instruction in front, label words or descriptions as they are.

        A tagger's layer, without which there would be no answer, is the tuned prompt's.

        Raises:
            PromptmillError: the backbone is not the one that it was tuned on.
        """
        prompt.check_base(backbone.identity)
        encoding = TaskEncoding(prompt.task, backbone, soft=False)
        scorer: Classification | TokenTags | None = None
        if prompt.task.tags:
            scorer = restore_tagger(prompt, backbone)
        elif not prompt.task.writes:
            scorer = build_classifier(prompt.task, encoding, backbone, prompt.manifest.labels)
        state = PromptState.of(backbone, root=encoding.root if backbone.generates else ())
        return cls._with(prompt, encoding, state, scorer, backbone)

    @classmethod
    def _with(
        cls,
        prompt: TunedPrompt,
        encoding: TaskEncoding,
        state: PromptState,
        scorer: Classification | TokenTags | None,
        backbone: Backbone,
        retriever: Retriever | None = None,
    ) -> ReadyPrompt:
        state = state if isinstance(backbone, EncoderDecoder) else lower(backbone, state)
        longest = prompt.manifest.max_new_tokens or 0  # the tuning of a task that writes records it
        labels, batch_tokens = prompt.manifest.labels, prompt.task.tune.batch_tokens
        beams = prompt.task.evaluate.beams
        return cls(prompt.name, backbone, encoding, state, scorer, labels, longest, beams, batch_tokens, retriever)

    def encode(self, given: Input) -> Encoded:
        """An input as tokens: a text, for a template with one field, or a mapping with the template's fields.

        Raises:
            PromptmillError: a field is absent, empty or no text, or a text stands for several.
        """
        fields = read_input(given, self.encoding.fields)
        (example,) = self._shown([fields], [self._read(given, fields)])
        return example

    def encode_all(self, inputs: Inputs) -> list[Encoded]:
        """Inputs as tokens.

        Raises:
            PromptmillError: as `encode`, with the number of the input.
        """
        listed = as_list(inputs)
        rows, encoded = as_fields(listed, self.encoding.fields), []
        for number, (given, fields) in enumerate(zip(listed, rows, strict=True), 1):
            try:
                encoded.append(self._read(given, fields))
            except PromptmillError as error:
                raise PromptmillError(f"input {number}: {error.where}", error.what, error.fix) from None
        return self._shown(rows, encoded)

    def _read(self, given: Input, fields: Mapping[str, Any]) -> Encoded:
        if not isinstance(self.scorer, TokenTags):
            return self._encoded(fields)
        located, (name,) = self.encoding.locate(fields), self.encoding.fields
        raw = given if isinstance(given, str) else given[name]
        return in_original(located, raw) if isinstance(raw, str) else located

    def _encoded(self, fields: Mapping[str, Any], shown: tuple[int, ...] = ()) -> Encoded:
        """An input, behind the demonstrations that stand in front of it alone."""
        room = room_for_input(self.backbone, self.state, self.scorer, self.max_new_tokens, len(shown))
        example = self.encoding.encode(fields, room=room)
        return replace(example, input=shown + example.input) if shown else example

    def _shown(self, rows: Sequence[Mapping[str, Any]], encoded: list[Encoded]) -> list[Encoded]:
        """The inputs with the demonstrations that each retrieves in front of it, behind what all share."""
        if self.retriever is None:
            return encoded
        root_tokens = self.state.keys.shape[1]  # read already: retrieval is for causal models
        # Read anew, since what they show takes room from them.
        own = [behind(root_tokens, self.encoding, shown) for shown in self.retriever(rows)]
        return [self._encoded(fields, shown) for fields, shown in zip(rows, own, strict=True)]

    def text(self, example: Encoded, max_new_tokens: int | None = None, sampling: Sampling | None = None) -> Text:
        """What the model is to write of an input, by default as when it was evaluated."""
        longest = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        uniforms = sampling.uniforms(0, longest) if sampling else None
        ends, closing = self.encoding.ends, self.encoding.closing
        return Text(self.state, example.input, longest, ends, closing, sampling, uniforms, self.beams)

    def answer_of_text(self, text: Text) -> Answer:
        """The answer in a text that is written."""
        return Answer(self.encoding.decode(text.ids), math.exp(text.mean_log_chance))

    def answer_of_scores(self, scores: Tensor, example: Encoded) -> Answer:
        """The answer in the scores of an input."""
        if isinstance(self.scorer, TokenTags):
            assert isinstance(example, Located)  # `encode` locates what a tagger reads
            return Answer(answer_of(scores, example, self.labels), None)
        best = int(scores.argmax(-1))
        return Answer(self.labels[best], float(torch.softmax(scores.double(), -1)[best]))
