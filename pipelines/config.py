"""What a run may ask for in the launchpad: the knobs of a task file, made from its own models, so that there is no second list of them."""

from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import dagster as dg
from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo

from prompt_core import TaskSpec
from prompt_core.task_file import parse_task

_SECTIONS = ("prompt", "tune", "text")
_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
_SCALARS = (bool, int, float, str)


class _Knobs(dg.Config):
    """A section of the run config."""

    def applied_to(self, task: TaskSpec) -> TaskSpec:
        """The task with these knobs turned.

        Raises:
            PromptmillError: a value that a task file could not have either.
        """
        content = task.model_dump(mode="json", exclude_unset=True)  # what the file leaves open stays open to a search
        for section, given in self.model_dump(mode="json", exclude_none=True).items():
            if given:
                content[section] = content.get(section, {}) | given
        return parse_task(content, f"run config of tuned_prompt[{task.name}]", task.folder)


def _section(name: str) -> type[dg.Config]:
    part: type[BaseModel] = TaskSpec.model_fields[name].annotation  # type: ignore[assignment]
    knobs: dict[str, Any] = {
        knob: (_config_type(f"{name}_{knob}", field.annotation) | None, Field(default=None, description=_described(field)))
        for knob, field in part.model_fields.items()
    }
    return create_model(f"{name.capitalize()}Config", __base__=dg.Config, __doc__=part.__doc__, **knobs)


def _config_type(name: str, annotation: Any) -> Any:
    """The nearest type that the launchpad knows: numbers, texts, choices; else anything, which the task file's models check."""
    given = [kind for kind in get_args(annotation) if kind is not NoneType] if _is_union(annotation) else [annotation]
    if len(given) == 1 and get_origin(given[0]) is Literal:
        return Enum(name, {choice: choice for choice in get_args(given[0])})
    if len(given) == 1 and given[0] in _SCALARS:
        return given[0]
    if len(given) == 1 and get_origin(given[0]) is tuple:
        return list[Any]
    return dict[str, Any]


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, UnionType)


def _described(field: FieldInfo) -> str:
    """Description, bounds and default of a knob, in a line."""
    bounds = [f"{words} {getattr(limit, name):,}" for limit in field.metadata for name, words in _BOUNDS.items() if hasattr(limit, name)]
    default = field.get_default(call_default_factory=True)
    usual = [] if default is None or isinstance(default, BaseModel) or default in ((), {}, "") else [f"usually {default}"]
    rest = ", ".join([*bounds, *usual])
    return (field.description or "") + (f" ({rest})" if rest else "")


# Left out is what the task file says; lasting changes belong there.
TuneConfig = create_model(
    "TuneConfig",
    __base__=_Knobs,
    __doc__="Knobs for one run. What is left out is as the task file says; lasting changes belong there.",
    **{name: (_section(name), _section(name)()) for name in _SECTIONS},  # type: ignore[call-overload]
)
