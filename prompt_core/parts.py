"""`Part`: the base of every part of a task file; and texts that stand for a label, one or several."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Described = str | Annotated[tuple[str, ...], Field(min_length=1)]
Descriptions = dict[str, Described]  # of each label


def all_texts(described: Described) -> tuple[str, ...]:
    """What stands for a label as it is counted: one text is a tuple of one."""
    return (described,) if isinstance(described, str) else described


def as_written(texts: tuple[str, ...]) -> Described:
    """What stands for a label as files say it: one text by itself."""
    return texts if len(texts) > 1 else texts[0]


class Part(BaseModel):
    """Frozen, and strict about unknown keys and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
