"""`TextPrompt`: a prompt in words. Template, label words and solved examples as plain data; no model is needed to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from prompt_core.errors import PromptmillError
from prompt_core.parts import Descriptions, all_texts
from prompt_core.task import Role, TaskSpec
from prompt_core.template import Template, are_parted


class Demonstration(BaseModel):
    """A solved example: the template's fields, and the answer as the model is to say it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fields: dict[str, str]
    answer: str


class EmbeddingModel(BaseModel):
    """The frozen model by whose embeddings demonstrations are near, with digests of its weights and its tokenizer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    weights: str
    tokenizer: str


class Retrieval(BaseModel):
    """How each input gets demonstrations of its own: the nearest of the pool.

    Attributes:
        count: how many.
        balanced: whether the labels take turns.
        model: what embeds inputs and pool.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = Field(ge=1)
    balanced: bool
    model: EmbeddingModel


class TextPrompt(BaseModel):
    """What a text prompt says, and how its answers are read.

    Attributes:
        template: chat messages, or one string; Jinja, sandboxed.
        labels: of a classifier, what stands for each label: one text, or several, whose scores (causal models) or
            embeddings (encoders) are averaged; the first is what a demonstration says.
        demonstrations: solved examples in front of every input, in this order; or with `retrieval` the pool of them.
        retrieval: which of the pool stand in front of an input; None for all.
        exemplars: of an encoder's classifier, per label the fields of examples whose embeddings join its texts'; None for a
            model that writes.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: str | tuple[dict[Role, str], ...]
    labels: Descriptions = Field(default_factory=dict)
    demonstrations: tuple[Demonstration, ...] = ()
    retrieval: Retrieval | None = None
    exemplars: dict[str, tuple[dict[str, str], ...]] | None = None

    @model_serializer(mode="wrap")
    def _what_there_is(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A prompt without retrieval or exemplars is written without a word of them, as it was before there were any."""
        return {name: value for name, value in written(self).items() if value is not None or name not in ("retrieval", "exemplars")}

    @property
    def parted(self) -> bool:
        """Whether an answer behind its demonstrations ends at a blank line, where the template is one string."""
        return are_parted([shown.answer for shown in self.demonstrations])

    @property
    def words(self) -> dict[str, tuple[str, ...]]:
        """All texts that stand for each label that the prompt has words of its own for."""
        return {label: all_texts(said) for label, said in self.labels.items()}

    def applied_to(self, task: TaskSpec) -> TaskSpec:
        """The task with this prompt's wording and label words in place of its own."""
        return task.model_copy(update={"template": self.template, "labels": {**task.labels, **self.labels}})

    def render(
        self, task: TaskSpec, fields: Mapping[str, Any], retrieved: Sequence[Demonstration] | None = None
    ) -> str | list[dict[str, str]]:
        """What a model reads for one input: a string, or chat messages with `role` and `content`.

        Args:
            task: whose prompt this is.
            fields: of the input.
            retrieved: the demonstrations of this input, where they are retrieved.

        Raises:
            PromptmillError: a field that the template names is absent or empty, or retrieved demonstrations are not given.
        """
        if self.retrieval and retrieved is None:
            what = f"shows each input the {self.retrieval.count} nearest of {len(self.demonstrations)} examples, which takes their index"
            raise PromptmillError(f"prompt {task.name}", what, "Give them as retrieved=..., from TunedPrompt.retrieve; or use predict.")
        template = Template(self.applied_to(task), soft=False)
        shown = [(each.fields, each.answer) for each in (self.demonstrations if retrieved is None else retrieved)]
        if not template.is_chat:
            return template.render_solved(shown, fields)
        query = template.render(fields)
        turns = [message for solved, answer in shown for message in [*_behind_system(template.render(solved)), ("assistant", answer)]]
        ordered = [*(m for m in query if m[0] == "system"), *turns, *_behind_system(query)]
        return [{"role": str(role), "content": text} for role, text in ordered]

    def page(self, task: TaskSpec) -> str:
        """The prompt for people: what a model reads for an input whose fields are shown by their names, and what stands for the labels."""
        names = {name: f"<{name}>" for name in Template(self.applied_to(task), soft=False).fields}
        nearest = [Demonstration(fields={name: f"<{name} of a near example>" for name in names}, answer="<its answer>")]
        shown = self.render(task, names, nearest if self.retrieval else None)
        text = shown if isinstance(shown, str) else "\n".join(f"[{message['role']}] {message['content']}" for message in shown)
        words = [f"{label}: {' | '.join(said)}" for label, said in sorted(self.words.items())]
        lines = ["answers: " + ", ".join(words)] if words else []
        if self.retrieval:
            turns = ", the labels in turn" if self.retrieval.balanced else ""
            pool, model = len(self.demonstrations), self.retrieval.model.name
            lines += [f"demonstrations: the {self.retrieval.count} nearest of {pool} by {model}{turns}"]
        if self.exemplars:
            lines += ["exemplars: " + ", ".join(f"{label}: {len(own)}" for label, own in sorted(self.exemplars.items()))]
        return "\n".join([text, *([""] if lines else []), *lines])


def _behind_system(messages: list[tuple[Role | None, str]]) -> list[tuple[Role | None, str]]:
    return [message for message in messages if message[0] != "system"]
