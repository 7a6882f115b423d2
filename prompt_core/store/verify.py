"""Whether a store still holds what was published: everything is read and compared with the digests that were written down."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from prompt_core.errors import PromptmillError
from prompt_core.store.contents import Contents
from prompt_core.store.log import Log
from prompt_core.store.records import Content, State, damaged


class Verified(BaseModel):
    """What was read, and one line for every finding.

    Attributes:
        bytes: size of the content that was compared.
        problems: empty where everything is as it was written.
    """

    model_config = ConfigDict(frozen=True)

    prompts: int
    versions: int
    entries: int
    bytes: int
    problems: tuple[str, ...]

    @classmethod
    def together(cls, found: Iterable[Verified]) -> Verified:
        """The sum of several."""
        parts = list(found)
        counts = {field: sum(getattr(part, field) for part in parts) for field in ("prompts", "versions", "entries", "bytes")}
        return cls(**counts, problems=tuple(problem for part in parts for problem in part.problems))


def verify_prompt(log: Log, contents: Contents) -> Verified:
    """Check the whole log of one prompt, and the content of every version that can be loaded."""
    problems: list[str] = []
    entries = 0
    try:
        found = log.entries()
        entries = len(found)
    except PromptmillError as error:
        problems.append(str(error))
    try:
        state = log.state()
    except PromptmillError as error:
        problems += [] if str(error) in problems else [str(error)]
        state = State()
    size = 0
    for number, content in sorted(state.versions.items()):
        try:
            size += _verify_version(contents, content, number)
        except PromptmillError as error:
            problems.append(str(error))
    return Verified(prompts=1, versions=len(state.versions), entries=entries, bytes=size, problems=tuple(problems))


def _verify_version(contents: Contents, content: Content, number: int) -> int:
    record = contents.record(content, number)
    size = contents.check(content, record)
    if "manifest.json" in record.files:
        from prompt_core.artifact import TunedPrompt  # torch loads when there is something to load

        with contents.checkout(content, record) as folder:
            digest = TunedPrompt.load(folder).digest
        if digest != record.digest:
            raise damaged(contents.address(content, "manifest.json"), f"and its tensors have the digest {digest[:12]}")
    return size
