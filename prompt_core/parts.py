"""`Part`: the base of every part of a task file; and a type that several of them have."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

# Per label the text that stands for it, or several.
Descriptions = dict[str, str | Annotated[tuple[str, ...], Field(min_length=1)]]


class Part(BaseModel):
    """Frozen, and strict about unknown keys and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
