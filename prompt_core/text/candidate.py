"""`Candidate`: one point of the search space, and the text prompt that it stands for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from prompt_core.errors import PromptmillError
from prompt_core.task import Role, TaskSpec
from prompt_core.template import Template
from prompt_core.text.prompt import Demonstration, TextPrompt
from prompt_core.text.spec import TEMPLATE_CODE
from prompt_core.tuning.build import answer

Structure = Literal["as_written", "system", "before", "after", "around"]
STRUCTURES: tuple[Structure, ...] = ("system", "before", "after", "around")


@dataclass(frozen=True)
class Candidate:
    """One choice of everything that is searched.

    Attributes:
        wording: the instruction; empty for none.
        structure: where it stands: in a system message, before or after the input, or both; `as_written` is the
            template as its author wrote it.
        words: (label, what the model says for it) where that is not the task's own.
        shown: ids of the training rows that stand in front as demonstrations, in this order.
        calibrated: whether a classifier's scores are freed of what it thinks of the labels before it reads an input.
    """

    wording: str
    structure: Structure
    words: tuple[tuple[str, str], ...] = ()
    shown: tuple[str, ...] = ()
    calibrated: bool = False

    @property
    def digest(self) -> str:
        """Of its content, 32 hexadecimal digits."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]

    def prompt(self, task: TaskSpec, rows: Mapping[str, Mapping[str, Any]]) -> TextPrompt:
        """The text prompt; `rows` are the training rows by id."""
        worded = task.model_copy(update={"labels": {**task.labels, **dict(self.words)}})
        fields = Template(task).fields
        shown = tuple(
            Demonstration(fields={name: str(rows[i][name]) for name in fields}, answer=answer(worded, rows[i][task.data.target]))
            for i in self.shown
        )
        template = task.template if self.structure == "as_written" else _built(task, self.wording, self.structure)
        return TextPrompt(template=template, labels=dict(self.words), demonstrations=shown)


def own_candidate(task: TaskSpec) -> Candidate:
    """The task's template as it is."""
    return Candidate(wording=instruction(task), structure="as_written")


def instruction(task: TaskSpec) -> str:
    """The template's own instruction: its first message without a field; empty where there is none."""
    for _, text in _messages(task):
        if not TEMPLATE_CODE.search(text):
            return text.strip()
    return ""


def structures(task: TaskSpec) -> Sequence[Structure]:
    """The structures that the template can take: a plain string has no system message."""
    return STRUCTURES if not isinstance(task.template, str) else STRUCTURES[1:]


def _built(task: TaskSpec, wording: str, structure: Structure) -> str | tuple[dict[Role, str], ...]:
    """The template's messages with fields, and the wording in its place."""
    if TEMPLATE_CODE.search(wording):
        raise PromptmillError(f"task {task.name}: wording", f'"{wording[:60]}" holds template code', "Write plain words.")
    inputs = [(role, text) for role, text in _messages(task) if TEMPLATE_CODE.search(text)]
    if not inputs:
        raise PromptmillError(f"task {task.name}: template", "has no message with a field", "Put a column in, like {{ text }}.")
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


def _messages(task: TaskSpec) -> list[tuple[Role | None, str]]:
    if isinstance(task.template, str):
        return [(None, task.template)]
    return [next(iter(message.items())) for message in task.template]
