"""What a store writes down: version records and the moves of aliases, as JSON files that are written whole."""

from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from prompt_core.errors import PromptmillError

Model = TypeVar("Model", bound=BaseModel)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VersionRecord(_Record):
    """A published version: which content, when (UTC, ISO 8601), why, and the evaluation that let it through."""

    name: str
    version: int = Field(ge=1)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    published: str
    why: str
    evaluation: dict[str, Any]


class AliasMove(_Record):
    """One move of an alias: to which version, when (UTC, ISO 8601), by whom and why."""

    version: int
    when: str
    who: str
    why: str


class Alias(_Record):
    """The version that an alias stands for, and all its moves, the first one first."""

    version: int
    history: tuple[AliasMove, ...]

    def before(self) -> int | None:
        """The version that a rollback goes to. A move back to the version before counts as taking the last one off."""
        trail: list[int] = []
        for move in self.history:
            if trail[-2:-1] == [move.version]:
                trail.pop()
            else:
                trail.append(move.version)
        return trail[-2] if len(trail) > 1 else None

    @classmethod
    def moved(cls, alias: Alias | None, version: int, who: str, why: str) -> Alias:
        """`alias`, or a new one, after a move to `version`."""
        move = AliasMove(version=version, when=now(), who=who, why=why)
        return cls(version=version, history=(*(alias.history if alias else ()), move))


class PromptSummary(_Record):
    """A prompt of the store: its versions, and the version of each alias."""

    name: str
    versions: tuple[int, ...]
    aliases: dict[str, int]


class Aliases(RootModel[dict[str, Alias]]):
    """The content of aliases.json: each alias of one prompt by name."""


def read_record(path: Path, model: type[Model]) -> Model:
    """A file of the store.

    Raises:
        PromptmillError: it is missing or is not what it should be.
    """
    try:
        return model.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise PromptmillError(str(path), f"cannot be read ({reason})", "The store is damaged; restore the file.") from None


def write_beside(path: Path, content: BaseModel) -> Path:
    """Write a complete file into the folder of `path`, under a hidden name that is returned; renaming or linking publishes it."""
    text = content.model_dump_json(indent=1)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, 0o644)  # mkstemp's files are private, but consumers may be other users
        file.write(text + "\n")
        file.flush()
        os.fsync(descriptor)
    return Path(name)


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
