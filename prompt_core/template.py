"""Templates: Jinja in a sandbox, from an example's fields to chat messages or one string. Knows no tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import jinja2
import jinja2.meta
import jinja2.sandbox

from prompt_core.errors import PromptmillError, nearest
from prompt_core.task import Role, TaskSpec


class Template:
    """The compiled template of a task.

    Args:
        task: its `template` is chat messages (role and text) or one string, which counts as a message without a role.

    Raises:
        PromptmillError: a message is not valid Jinja.
    """

    def __init__(self, task: TaskSpec) -> None:
        self._where = f"task {task.name}: template"
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        parts: list[tuple[Role | None, str]] = (
            [(None, task.template)] if isinstance(task.template, str) else [next(iter(m.items())) for m in task.template]
        )
        try:
            self._messages = [(role, environment.from_string(source)) for role, source in parts]
            trees = [environment.parse(source) for _, source in parts]
        except jinja2.TemplateSyntaxError as error:
            raise PromptmillError(self._where, f"is not valid Jinja ({error.message})", "Fields are written {{ like_this }}.") from None
        found = set().union(*(jinja2.meta.find_undeclared_variables(tree) for tree in trees))
        words = [word for _, source in parts for _, kind, word in environment.lex(source) if kind == "name"]
        self.fields: tuple[str, ...] = tuple(sorted(found, key=words.index))  # in the order of the template
        if not self.fields:
            raise PromptmillError(self._where, "names no field", "Put a column of the data in, like {{ text }}.")

    @cached_property
    def is_chat(self) -> bool:
        """Whether the template is chat messages rather than one string."""
        return self._messages[0][0] is not None

    def render(self, fields: Mapping[str, Any]) -> list[tuple[Role | None, str]]:
        """The messages of one example, as (role, text); one message without a role for a plain string.

        Raises:
            PromptmillError: a field that the template names is absent or empty.
        """
        for name in self.fields:
            if name not in fields:
                raise PromptmillError(self._where, f'field "{name}" is not in the input', nearest(name, fields))
            if fields[name] is None or not str(fields[name]).strip():
                raise PromptmillError(self._where, f'field "{name}" is empty', "Give it a text.")
        try:
            return [(role, message.render({k: fields[k] for k in self.fields})) for role, message in self._messages]
        except Exception as error:  # a template is code: a division by zero, say, is its author's to correct
            raise PromptmillError(self._where, f"cannot be rendered ({error})", "Correct the template.") from None
