"""`TextPrompt`: a prompt in words. Template, label words and solved examples as plain data; no model is needed to use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from prompt_core.task import Role, TaskSpec
from prompt_core.template import Template


class Demonstration(BaseModel):
    """A solved example: the template's fields, and the answer as the model is to say it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fields: dict[str, str]
    answer: str


class TextPrompt(BaseModel):
    """What a text prompt says, and how its answers are read.

    Attributes:
        template: chat messages, or one string; Jinja, sandboxed.
        labels: of a classifier, what the model says for each label.
        demonstrations: solved examples in front of every input, in this order.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: str | tuple[dict[Role, str], ...]
    labels: dict[str, str] = Field(default_factory=dict)
    demonstrations: tuple[Demonstration, ...] = ()

    def applied_to(self, task: TaskSpec) -> TaskSpec:
        """The task with this prompt's wording in place of its own."""
        return task.model_copy(update={"template": self.template, "labels": {**task.labels, **self.labels}})

    def render(self, task: TaskSpec, fields: Mapping[str, Any]) -> str | list[dict[str, str]]:
        """What a model reads for one input: a string, or chat messages with `role` and `content`.

        Raises:
            PromptmillError: a field that the template names is absent or empty.
        """
        template = Template(self.applied_to(task), soft=False)
        query = template.render(fields)
        solved = [(template.render(shown.fields), shown.answer) for shown in self.demonstrations]
        if not template.is_chat:
            return "".join([*(f"{messages[0][1]} {answer}\n\n" for messages, answer in solved), query[0][1]])
        turns = [message for messages, answer in solved for message in [*_behind_system(messages), ("assistant", answer)]]
        ordered = [*(m for m in query if m[0] == "system"), *turns, *_behind_system(query)]
        return [{"role": str(role), "content": text} for role, text in ordered]

    def page(self, task: TaskSpec) -> str:
        """The prompt for people: what a model reads for an input whose fields are shown by their names, and the label words."""
        fields = Template(self.applied_to(task), soft=False).fields
        shown = self.render(task, {name: f"<{name}>" for name in fields})
        text = shown if isinstance(shown, str) else "\n".join(f"[{message['role']}] {message['content']}" for message in shown)
        words = [f"{label}: {self.labels[label]}" for label in sorted(self.labels)]
        return "\n".join([text, *(["", "answers: " + ", ".join(words)] if words else [])])


def _behind_system(messages: list[tuple[Role | None, str]]) -> list[tuple[Role | None, str]]:
    return [message for message in messages if message[0] != "system"]
