"""What a store writes down, as JSON: the record of a publication, and the entries of a prompt's log, each with the whole state after it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from prompt_core.errors import PromptmillError
from prompt_core.plain_json import Model, parse_json

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,99}")
_FILE = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9._\-]*(/[A-Za-z0-9_\-][A-Za-z0-9._\-]*)*")


def is_plain_name(name: str) -> bool:
    """Whether a text may name a prompt or an alias: no separators, no dots, nothing that a file system reads differently."""
    return _NAME.fullmatch(name) is not None


def _plain(name: str) -> str:
    if not is_plain_name(name):
        raise ValueError(f"{name!r} is not a plain name")
    return name


def _inside(path: str) -> str:
    if not _FILE.fullmatch(path):
        raise ValueError(f"{path!r} is not the path of a file inside a folder")
    return path


Name = Annotated[str, AfterValidator(_plain)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Publication(_Record):
    """What was published: which content, when (UTC, ISO 8601), by whom and why, and the evaluation that let it through.

    Attributes:
        forced: it was published although its evaluation did not pass; `why` says for what reason.
        files: SHA-256 of every file of the content, by its path inside the folder.
    """

    name: Name
    digest: Digest
    published: str
    who: str
    why: str
    forced: bool
    evaluation: dict[str, Any]
    files: dict[Annotated[str, AfterValidator(_inside)], Digest]


class VersionRecord(Publication):
    """A publication and the number it got."""

    version: int = Field(ge=1)


class Content(_Record):
    """Where a version's files are.

    Attributes:
        digest: of the prompt.
        folder: `<digest>-<attempt>`. Each attempt to publish writes a folder of its own, so that a folder which is being
            removed is never the one that somebody relies on.
        publication: SHA-256 of publication.json in that folder.
        passed: whether the evaluation let it through.
    """

    digest: Digest
    folder: str = Field(pattern=r"^[0-9a-f]{64}-[0-9a-f]{8}$")
    publication: Digest
    passed: bool


class Published(_Record):
    """A version was published."""

    kind: Literal["publish"] = "publish"
    version: int


class Moved(_Record):
    """An alias was moved, from a version or, at first, from none; `forced` where a rule had to be set aside for it."""

    kind: Literal["move"] = "move"
    alias: Name
    before: int | None
    version: int
    forced: bool


class Withdrawn(_Record):
    """An alias was taken away; `before` is the version that it stood for."""

    kind: Literal["withdraw"] = "withdraw"
    alias: Name
    before: int


class Removed(_Record):
    """Versions were removed by a collection of garbage."""

    kind: Literal["remove"] = "remove"
    versions: tuple[int, ...]


Change = Annotated[Published | Moved | Withdrawn | Removed, Field(discriminator="kind")]


class State(_Record):
    """All that holds for one prompt at one moment.

    Attributes:
        next_version: the number that the next publication gets; numbers are never used twice.
        versions: those that can be loaded.
        aliases: for each alias the versions that rollbacks walk back over; the last one is what it stands for.
        taken_back: for each alias the versions that a rollback took off it, or that it stood for when it was withdrawn.
    """

    next_version: int = Field(default=1, ge=1)
    versions: dict[int, Content] = {}
    aliases: dict[Name, tuple[int, ...]] = {}
    taken_back: dict[Name, tuple[int, ...]] = {}

    @model_serializer(mode="wrap")
    def _what_there_is(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `taken_back` where it is empty, as entries were sealed before it was kept."""
        return {name: value for name, value in written(self).items() if value or name != "taken_back"}

    @model_validator(mode="after")
    def _holds_together(self) -> State:
        for number, content in self.versions.items():
            if not 1 <= number < self.next_version or not content.folder.startswith(content.digest):
                raise ValueError(f"version {number} does not belong here")
        for alias, trail in self.aliases.items():
            if not trail or trail[-1] not in self.versions:
                raise ValueError(f"alias {alias} stands for no version")
        return self


class Entry(_Record):
    """One change of a prompt, and the state after it.

    Attributes:
        attempt: tells this entry from that of another writer with the same content.
        before: SHA-256 of the entry before, None for the first one.
        when: UTC, ISO 8601.
    """

    format: Literal["promptmill-log/1"] = "promptmill-log/1"
    name: Name
    number: int = Field(ge=1)
    attempt: str
    before: Digest | None
    when: str
    who: str
    why: str
    change: Change
    state: State


class _Sealed(_Record):
    sha256: Digest
    entry: Entry


class AliasMove(_Record):
    """One move of an alias: from which version to which (None: none), when (UTC, ISO 8601), by whom and why, and whether it was forced."""

    alias: str
    before: int | None
    version: int | None = None
    when: str
    who: str
    why: str
    forced: bool = False


class PromptSummary(_Record):
    """A prompt of the store: its versions, and the version of each alias.

    Attributes:
        taken_back: versions that a rollback or withdrawal took off aliases and that none stands for now, with those aliases.
    """

    name: str
    versions: tuple[int, ...]
    aliases: dict[str, int]
    taken_back: dict[int, tuple[str, ...]] = {}


def passed(evaluation: Mapping[str, Any]) -> bool:
    """Whether the verdict of an evaluation is there and lets the prompt through."""
    verdict = evaluation.get("verdict")
    return isinstance(verdict, Mapping) and verdict.get("passed") is True


def seal(entry: Entry) -> bytes:
    """The bytes of an entry, with a checksum that tells when they were changed."""
    return as_json(_Sealed(sha256=sha256(as_json(entry)), entry=entry))


def unseal(content: bytes, where: str, name: str, number: int) -> Entry:
    """The entry `number` of the log of prompt `name`.

    Raises:
        PromptmillError: it is not that entry, or was changed.
    """
    sealed = parse(content, where, _Sealed)
    entry = sealed.entry
    if sealed.sha256 != sha256(as_json(entry)):
        raise damaged(where, "does not fit its checksum")
    if (entry.name, entry.number) != (name, number):
        raise damaged(where, f"is entry {entry.number} of prompt {entry.name}")
    return entry


def parse(content: bytes, where: str, model: type[Model]) -> Model:
    """A record from the bytes of its file.

    Raises:
        PromptmillError: it is not one.
    """
    try:
        return parse_json(content, model)
    except ValueError as error:
        raise damaged(where, f"is not a record of the store ({error})") from None


def damaged(where: str, what: str) -> PromptmillError:
    """The error for a file that is not what was written."""
    return PromptmillError(where, " ".join(what.split()), "The store is damaged; restore this file.")


def as_json(model: BaseModel) -> bytes:
    """Readable JSON whose bytes depend on the content alone."""
    return (json.dumps(model.model_dump(mode="json"), indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def sha256(content: bytes) -> str:
    """64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
