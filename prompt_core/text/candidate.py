"""`Candidate`: one point of the search space, and the text prompt that it stands for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from prompt_core.errors import PromptmillError
from prompt_core.parts import Descriptions, as_written
from prompt_core.task import Role, TaskSpec
from prompt_core.template import BETWEEN, Template
from prompt_core.text.prompt import Demonstration, Retrieval, TextPrompt
from prompt_core.text.spec import TEMPLATE_CODE
from prompt_core.tuning.build import answer

Structure = Literal["as_written", "system", "before", "after", "around", "lines"]
_LEAD_IN = 2  # so many words at the head of a string are the input's name ("Text:"), more are an instruction


@dataclass(frozen=True)
class Candidate:
    """One choice of everything that is searched.

    Attributes:
        wording: the instruction; empty for none.
        structure: where it stands: in a system message, before or after the input, or both; in front of `lines`, a plain
            string of inputs and answers, even where the model has a chat format; `as_written` is the template as its
            author wrote it.
        words: (label, all that stands for it) where that is not the task's own.
        shown: ids of the training rows that stand in front as demonstrations, in this order; of an encoder those that are
            exemplars of their labels.
        retrieval: in their place the nearest of all training rows, for each input its own.
        calibrated: whether a classifier's scores are freed of what it thinks of the labels before it reads an input.
    """

    wording: str
    structure: Structure
    words: tuple[tuple[str, tuple[str, ...]], ...] = ()
    shown: tuple[str, ...] = ()
    retrieval: Retrieval | None = None
    calibrated: bool = False

    @cached_property
    def digest(self) -> str:
        """Of its content, 32 hexadecimal digits."""
        content = asdict(self) | {"retrieval": self.retrieval and self.retrieval.model_dump()}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def labels(self) -> Descriptions:
        """`words` as a text prompt has them."""
        return {label: as_written(said) for label, said in self.words}

    def template(self, task: TaskSpec) -> str | tuple[dict[Role, str], ...]:
        """The wording in its place.

        Raises:
            PromptmillError: the wording holds template code.
        """
        return task.template if self.structure == "as_written" else _built(task, self.wording, self.structure)

    def prompt(self, task: TaskSpec, rows: Mapping[str, Mapping[str, Any]], encoder: bool = False) -> TextPrompt:
        """The text prompt; `rows` are the training rows by id, and `encoder` says what reads it."""
        worded = task.model_copy(update={"labels": {**task.labels, **self.labels}})
        template = self.template(task)
        fields = Template(task).fields
        if encoder:
            exemplars: dict[str, tuple[dict[str, str], ...]] = {}
            for row in (rows[i] for i in self.shown):
                own = exemplars.setdefault(row[task.data.target], ())
                exemplars[row[task.data.target]] = (*own, {name: str(row[name]) for name in fields})
            return TextPrompt(template=template, labels=self.labels, exemplars=exemplars)
        shown = tuple(
            Demonstration(fields={name: str(row[name]) for name in fields}, answer=answer(worded, row[task.data.target]))
            for row in (rows.values() if self.retrieval else (rows[i] for i in self.shown))
        )
        return TextPrompt(template=template, labels=self.labels, demonstrations=shown, retrieval=self.retrieval)


def own_candidate(task: TaskSpec) -> Candidate:
    """The task's template as it is."""
    return Candidate(wording=instruction(task), structure="as_written")


def instruction(task: TaskSpec) -> str:
    """The template's own instruction: its first message without a field, or what a string begins with; empty where there is none."""
    for _, text in _messages(task):
        if not TEMPLATE_CODE.search(text):
            return text.strip()
    return ""


def structures(task: TaskSpec, encoder: bool = False) -> Sequence[Structure]:
    """The structures that the template can take: a plain string has no system message, and lines are for solved examples."""
    system: Sequence[Structure] = () if isinstance(task.template, str) else ("system",)
    lines: Sequence[Structure] = () if encoder or not task.text.demonstrations else ("lines",)
    return (*system, "before", "after", "around", *lines)


def _built(task: TaskSpec, wording: str, structure: Structure) -> str | tuple[dict[Role, str], ...]:
    """The template's messages with fields, and the wording in its place."""
    if TEMPLATE_CODE.search(wording):
        raise PromptmillError(f"task {task.name}: wording", f'"{wording[:60]}" holds template code', "Write plain words.")
    inputs = [(role, text) for role, text in _messages(task) if TEMPLATE_CODE.search(text)]
    if not inputs:
        raise PromptmillError(f"task {task.name}: template", "has no message with a field", "Put a column in, like {{ text }}.")
    if structure == "lines":
        asked = inputs[0][1] if isinstance(task.template, str) else _named("\n".join(text for _, text in inputs))
        return f"{wording}{BETWEEN}{asked}" if wording else asked
    (first_role, first), (last_role, last) = inputs[0], inputs[-1]
    if structure in ("before", "around") and wording:
        inputs[0] = (first_role, f"{wording}\n{first}")
        last = inputs[-1][1]
    if structure in ("after", "around") and wording:
        inputs[-1] = (last_role, f"{last}\n{wording}")
    if isinstance(task.template, str):
        return inputs[0][1]
    system: list[tuple[Role, str]] = [("system", wording)] if structure == "system" and wording else []
    return tuple({role: text} for role, text in [*system, *((role or "user", text) for role, text in inputs)])


def _named(asked: str) -> str:
    """What a user turn says as lines of a text, with names where it has none: few-shot as before any chat format (Brown et al. 2020)."""
    named = f"Input: {asked}" if TEMPLATE_CODE.match(asked) else asked
    return named if named.rstrip().endswith(":") else f"{named}\nOutput:"


def _messages(task: TaskSpec) -> list[tuple[Role | None, str]]:
    """Roles and texts; an instruction at the head of a string counts as a message."""
    if not isinstance(task.template, str):
        return [next(iter(message.items())) for message in task.template]
    code = TEMPLATE_CODE.search(task.template)
    head = task.template[: code.start()] if code else ""
    if len(head.split()) <= _LEAD_IN:
        return [(None, task.template)]
    return [(None, head), (None, task.template[len(head) :])]
