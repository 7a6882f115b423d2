"""Templates: Jinja in a sandbox, from an example's fields to chat messages or one string. Knows no tokenizer.

Beside text and fields a template may hold soft tokens anywhere, `{{ soft(16) }}`: trained rows in place of words. They are
numbered in the order in which they are written; one that is rendered twice, as in a loop, is the same one twice.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import jinja2
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox

from prompt_core.errors import PromptmillError, nearest
from prompt_core.task import Role, TaskSpec

BETWEEN = "\n\n"  # parts the solved examples in front of a plain string
_SOFT = "soft"
# Private-use characters, which no text means.
_FIELD = "\ue000"
_MARK = re.compile("\ue002(\\d+):(\\d+)\ue003")
_PLAIN = (jinja2.nodes.Output, jinja2.nodes.TemplateData, jinja2.nodes.Name, jinja2.nodes.Call, jinja2.nodes.Const)
_NO_MARKS = {0xE002: None, 0xE003: None}


class Template:
    """The compiled template of a task.

    Args:
        task: its `template` is chat messages (role and text) or one string, which counts as a message without a role.
        soft: whether soft tokens are rendered, as marks that `split_soft` finds; else they are left out.

    Attributes:
        fields: the fields that it uses, in order.
        soft_tokens: how many it has, rendered or not.
        is_plain: whether it puts every field in as it stands, without a condition, loop or filter.

    Raises:
        PromptmillError: a message is not valid Jinja, or soft(n) lacks its number.
    """

    def __init__(self, task: TaskSpec, soft: bool = True) -> None:
        self._where = f"task {task.name}: template"
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        parts: list[tuple[Role | None, str]] = (
            [(None, task.template)] if isinstance(task.template, str) else [next(iter(m.items())) for m in task.template]
        )
        try:
            trees = [environment.parse(source) for _, source in parts]
            found = set().union(*(jinja2.meta.find_undeclared_variables(tree) for tree in trees))
        except jinja2.TemplateSyntaxError as error:
            raise PromptmillError(self._where, f"is not valid Jinja ({error.message})", "Fields are written {{ like_this }}.") from None
        self.soft_tokens = 0
        for tree in trees:
            self._number_soft(tree)
        self.is_plain = all(isinstance(node, _PLAIN) for tree in trees for node in tree.find_all(jinja2.nodes.Node))
        environment.globals["soft"] = soft_mark if soft else _leave_out
        self._messages = [(role, environment.from_string(tree)) for (role, _), tree in zip(parts, trees, strict=True)]
        words = [word for _, source in parts for _, kind, word in environment.lex(source) if kind == "name"]
        self.fields: tuple[str, ...] = tuple(sorted(found - {_SOFT}, key=words.index))  # in the order of the template
        if not self.fields:
            raise PromptmillError(self._where, "names no field", "Put a column of the data in, like {{ text }}.")

    def _number_soft(self, tree: jinja2.nodes.Template) -> None:
        """Give every soft(n) the number of its first token as a second argument."""
        calls = [call for call in tree.find_all(jinja2.nodes.Call) if isinstance(call.node, jinja2.nodes.Name) and call.node.name == _SOFT]
        names = [name for name in tree.find_all(jinja2.nodes.Name) if name.name == _SOFT]
        for call in calls:
            count = call.args[0].value if len(call.args) == 1 and isinstance(call.args[0], jinja2.nodes.Const) else None
            if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 4096:
                raise PromptmillError(self._where, "soft(...) needs a number of tokens from 1 to 4096", "Write {{ soft(16) }}.")
            call.args.append(jinja2.nodes.Const(self.soft_tokens))
            self.soft_tokens += count
        if len(names) > len(calls):
            raise PromptmillError(self._where, "soft stands alone; it is not a field", "Write {{ soft(16) }}, or rename the column.")

    @cached_property
    def is_chat(self) -> bool:
        """Whether the template is chat messages rather than one string."""
        return self._messages[0][0] is not None

    @cached_property
    def _head(self) -> str:
        """Of a plain string: what stands in front of its first field and ends with a blank line."""
        before, field, _ = self.render(dict.fromkeys(self.fields, _FIELD))[0][1].partition(_FIELD)
        return before[: before.rfind(BETWEEN) + len(BETWEEN)] if field and BETWEEN in before else ""

    @cached_property
    def gap(self) -> str:
        """What stands between an input and its answer: a chat turn starts on a fresh line; behind a plain string the answer is the
        next word and needs its space, unless the template ends with one or with a line break."""
        end = self.render(dict.fromkeys(self.fields, _FIELD))[-1][1]
        return "" if self.is_chat or end.endswith((" ", "\n")) else " "

    def render_solved(self, solved: Sequence[tuple[Mapping[str, Any], str]], fields: Mapping[str, Any]) -> str:
        """A plain string with solved examples, given as fields and answer, in front. What ends with a blank line before its first
        field is said once, in front of all.

        Raises:
            PromptmillError: as `render`.
        """
        texts = [self.render(own)[0][1].removeprefix(self._head) for own in (*(shown for shown, _ in solved), fields)]
        lines = [f"{text}{self.gap}{answer}{BETWEEN}" for text, (_, answer) in zip(texts, solved, strict=False)]
        return "".join([self._head, *lines, texts[-1]])

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


def are_parted(answers: Collection[str]) -> bool:
    """Whether an answer behind solved examples with these answers ends at `BETWEEN`: there are some, and none has it inside."""
    return bool(answers) and not any(BETWEEN in answer for answer in answers)


def split_soft(text: str) -> list[str | tuple[int, int]]:
    """A rendered text as its plain parts and its soft tokens, these as (first, count)."""
    parts = _MARK.split(text)  # text, first, count, text, ...
    found: list[str | tuple[int, int]] = []
    for i in range(0, len(parts), 3):
        found += [parts[i]] if parts[i] else []
        found += [(int(parts[i + 1]), int(parts[i + 2]))] if i + 1 < len(parts) else []
    return found


def plain(value: str) -> str:
    """A field's value without the characters that mark soft tokens."""
    return value.translate(_NO_MARKS)


def soft_mark(count: int, first: int) -> str:
    """What stands in a rendered text for soft tokens, until `split_soft`."""
    return f"\ue002{first}:{count}\ue003"


def _leave_out(count: int, first: int) -> str:
    return ""
