"""A published prompt with its frozen model, and the recipe by which a consumer without Promptmill writes its texts.

In such a text soft token i of a prompt is written `<|pm:NAME@VERSION:i|>`. A version is part of the name, since its content
never changes: prompts and versions stand side by side in one vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prompt_core.backbone import Backbone, EncoderDecoder
from prompt_core.encoding import TaskEncoding
from prompt_core.export.package import Published, refused
from prompt_core.parts import as_written
from prompt_core.prediction import backbone_of, encoding_of, restore
from prompt_core.prompts import PromptState, lower
from prompt_core.template import split_soft
from prompt_core.tuning.build import descriptions


@dataclass(frozen=True, eq=False)
class Opened:
    """A prompt of a causal model, ready to be written in another form.

    Attributes:
        published: the version.
        backbone: its frozen model.
        encoding: of its task.
        state: the prompt as the model sees it.
    """

    published: Published
    backbone: Backbone
    encoding: TaskEncoding
    state: PromptState

    def refused_if_deep(self, form: str, fix: str) -> None:
        """Refuse what no row of input embeddings can say.

        Raises:
            PromptmillError: the prompt has keys and values.
        """
        if self.published.prompt.manifest.kind == "deep":
            raise refused(self.published, form, "it is a deep prefix, keys and values in every layer, not input embeddings", fix)

    def lowered(self, form: str) -> PromptState:
        """The prompt as keys and values alone.

        Raises:
            PromptmillError: it has soft tokens behind its first field, which belong to each example.
        """
        if any(split_soft(text) != [text] for kind, text in self.encoding.input_parts if kind == "text"):
            why = "it has soft tokens behind the first field, which are no part of the keys and values in front"
            raise refused(self.published, form, why, "Use tokens or vllm.")
        return lower(self.backbone, self.state)

    @property
    def root(self) -> str:
        """What stands in front of every example, as text with the soft tokens' names."""
        if self.published.prompt.manifest.kind == "soft" and not self.encoding.soft_tokens:
            return self._names(0, len(self.state.rows))
        leading = self.backbone.tokenizer.convert_ids_to_tokens(list(self.encoding.leading))
        return "".join(leading) + self.named(self.encoding.root_text)

    def recipe(self, root: str) -> dict[str, Any]:
        """How to write the text of an input: `root`, then `input` with each field's text in its place.

        Raises:
            PromptmillError: the template computes with its fields.
        """
        prompt, encoding = self.published.prompt, self.encoding
        ends = [run[0] for run in encoding.ends if len(run) == 1]
        recipe: dict[str, Any] = {
            "name": prompt.name,
            "version": self.published.version,
            "digest": prompt.digest,
            "root": root,
            "input": [{kind: self.named(text) if kind == "text" else text} for kind, text in encoding.input_parts],
            "add_special_tokens": False,
            "stop": encoding.stop or self.backbone.tokenizer.decode(ends),
            "stop_token_ids": ends,
        }
        if prompt.task.writes:
            return recipe | {"max_new_tokens": prompt.manifest.max_new_tokens, "num_beams": prompt.task.evaluate.beams}
        said = {label: descriptions(prompt.worded, label) for label in prompt.manifest.labels}
        words = {text: encoding.encode_answer(text) for own in said.values() for text in own}
        decode = self.backbone.tokenizer.decode
        return recipe | {
            "labels": {label: as_written(tuple(decode(words[text]) for text in own)) for label, own in said.items()},
            "max_new_tokens": max(map(len, words.values())),
            "num_beams": 1,
            "label_score": prompt.task.tune.label_score,
        }

    def named(self, text: str) -> str:
        """A rendered text with names in place of the marks of soft tokens."""
        return "".join(part if isinstance(part, str) else self._names(*part) for part in split_soft(text))

    def names(self) -> list[str]:
        """The names of all soft tokens, in the order of their rows."""
        return [soft_name(self.published.title, i) for i in range(len(self.state.rows))]

    def _names(self, first: int, count: int) -> str:
        return "".join(self.names()[first : first + count])


def soft_name(title: str, number: int) -> str:
    """The name of a prompt's soft token in a vocabulary."""
    return f"<|pm:{title}:{number}|>"


def opened(published: Published, form: str) -> Opened:
    """Load what a prompt was tuned on.

    Raises:
        PromptmillError: the base is not found or is another one, is no causal model, or its weights are held in 4 or 8 bits.
    """
    prompt = published.prompt
    backbone = backbone_of(prompt)
    prompt.check_base(backbone.identity)
    if not backbone.causal:
        kind = "an encoder-decoder, whose encoder reads it" if isinstance(backbone, EncoderDecoder) else "an encoder with label anchors"
        why = f"its base is {kind}; the format is for causal models"
        raise refused(published, form, why, "Use the format folder, which promptmill reads.")
    if prompt.task.backbone.quantization:
        why = f"its base holds its weights in {prompt.task.backbone.quantization}, so that the plain weights are another model"
        raise refused(published, form, why, "Tune it on the base that will serve it.")
    if prompt.manifest.text and prompt.manifest.text.retrieval:
        why = "it retrieves demonstrations for each input"
        raise refused(published, form, why, "Use the format folder, which promptmill reads.")
    encoding = encoding_of(prompt, backbone)
    return Opened(published, backbone, encoding, restore(prompt, encoding, backbone))
