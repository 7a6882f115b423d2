"""What a search over settings may choose from: the part `tune.search` of a task file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, TypeAdapter, ValidationError, model_validator

from prompt_core.errors import PromptmillError, nearest
from prompt_core.parts import Part

Setting = bool | int | float | str | None

# What the search itself decides, what changes how a tuning runs and not what comes out of it, or what no trial does.
_NOT_SEARCHED = {
    "tune.search",
    "tune.seed",
    "tune.decay",
    "tune.validate_every",
    "tune.patience",
    "tune.checkpoint_every",
    "tune.gradient_checkpointing",
    "tune.batch_tokens",
    "tune.self_training",
    "prompt.start_from",
}


class Range(Part):
    """Numbers from `low` to `high`, both included; whole ones for a setting that is whole."""

    low: float
    high: float
    log: bool = Field(default=False, description="whether a factor counts as much everywhere: for rates and lengths")

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(f"from {self.low:g} to {self.high:g} is no range" + (" of factors" if self.log else ""))
        return self


Choices = Annotated[tuple[Setting, ...], Field(min_length=1)]
Values = Annotated[
    Annotated[Choices, Tag("choices")] | Annotated[Range, Tag("range")],
    Discriminator(lambda value: "range" if isinstance(value, (Mapping, Range)) else "choices"),
]


class SearchSpec(Part):
    """How settings are chosen by cross-validation on the train and validation rows. Test rows are never looked at."""

    trials: int = Field(default=12, ge=1, le=10_000, description="sets of settings that are tried at most")
    together: int = Field(default=6, ge=1, le=256, description="trials that are tuned side by side, a wave")
    folds: int = Field(default=3, ge=2, le=20, description="parts of the examples; each is held out once in every trial")
    minutes: float | None = Field(
        default=None,
        gt=0.0,
        description="time after which the search ends with what it has, that for a text prompt before it included; a rerun may then "
        "choose otherwise",
    )
    eta: int = Field(default=3, ge=2, le=10, description="after each rung one in eta trials stays, the others are dropped")
    space: dict[str, Values] = Field(
        default_factory=dict,
        description="setting -> choices or {low, high, log}; `tune.steps` gives the rungs; default: what the task file leaves open",
    )
    final: Literal["refit", "average"] = Field(
        default="refit", description="refit: tune on all examples with the settings chosen; average: the mean of the folds' prompts"
    )


def check_space(space: Mapping[str, Values], parts: Mapping[str, type[BaseModel]]) -> None:
    """Refuse settings that a task file does not have, and values that they cannot take.

    Args:
        parts: the models of the task file's parts that have settings, by name.

    Raises:
        PromptmillError: names the setting and the nearest known one, or the value.
    """
    known = {f"{part}.{name}": field for part, model in parts.items() for name, field in model.model_fields.items()}
    known = {path: field for path, field in known.items() if path not in _NOT_SEARCHED}
    for path, values in space.items():
        where = f"tune.search.space: {path}"
        if path not in known:
            raise PromptmillError(where, "is no setting that a search can choose", nearest(path, known))
        if path == "prompt.kind" and not isinstance(values, Range):
            if "auto" in values:
                raise PromptmillError(where, "auto is what the search replaces", "Choose from soft and deep.")
            if "text" in values:
                raise PromptmillError(where, "text has a search of its own", "Choose from soft and deep.")
        if isinstance(values, Range) and not {int, float} & set(_plain_types(known[path].annotation)):
            raise PromptmillError(where, "takes no numbers", "Give a list of choices.")
        checked: Any = Annotated[known[path].annotation, Field(), *known[path].metadata]
        kind: TypeAdapter[Any] = TypeAdapter(checked)
        for value in (values.low, values.high) if isinstance(values, Range) else values:
            try:
                kind.validate_python(value)
            except ValidationError as error:
                raise PromptmillError(where, f"{error.errors()[0]['msg']} (found {value!r})", "Change it.") from None


def is_whole(annotation: Any) -> bool:
    """Whether a setting of this type takes whole numbers."""
    return int in _plain_types(annotation)


def _plain_types(annotation: Any) -> tuple[Any, ...]:
    return getattr(annotation, "__args__", (annotation,))
