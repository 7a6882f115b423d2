"""The log of one prompt: numbered entries that are never changed, each with the whole state after it.

Whoever creates the file of the next number makes the next change; all others look again and decide anew. That orders publications,
moves of aliases and removals of one prompt among any number of writers, and readers need the newest entry alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from uuid import uuid4

from prompt_core.store.filesystem import Files
from prompt_core.store.records import Change, Entry, State, damaged, now, seal, sha256, unseal

_ENTRY = re.compile(r"(\d{8})\.json")


class Log:
    """The changes of one prompt.

    Args:
        name: a plain name.
    """

    def __init__(self, files: Files, name: str) -> None:
        self.name, self._files, self._folder = name, files, f"prompts/{name}/log"

    def state(self) -> State:
        """What holds now; that of a prompt without versions where nothing was published."""
        newest = self._newest()
        return newest[0].state if newest else State()

    def append(self, decide: Callable[[State], tuple[Change, State] | None], who: str, why: str) -> State:
        """Make one change.

        Args:
            decide: what to do given the state that holds; None for nothing. Called again when another writer was first.

        Returns:
            The state that holds afterwards.
        """
        while True:
            newest = self._newest()
            state = newest[0].state if newest else State()
            decided = decide(state)
            if decided is None:
                return state
            change, after = decided
            entry = Entry(
                name=self.name,
                number=newest[0].number + 1 if newest else 1,
                attempt=uuid4().hex,
                before=sha256(newest[1]) if newest else None,
                when=now(),
                who=who,
                why=why,
                change=change,
                state=State.model_validate(after.model_dump()),
            )
            content, path = seal(entry), self._path(entry.number)
            # A repeated request of an object store's client may find its own file there.
            if self._files.create(path, content) or self._read(entry.number) == content:
                return entry.state

    def entries(self) -> list[Entry]:
        """All changes, the first one first.

        Raises:
            PromptmillError: one is missing, or was changed.
        """
        numbers = self._numbers()
        listed = self._files.find(self._folder)
        contents = self._files.read_records({path: listed[path] for number in numbers if (path := self._path(number)) in listed})
        entries: list[Entry] = []
        before: str | None = None
        for number in range(1, max(numbers, default=0) + 1):
            path = self._path(number)
            if path not in contents:
                raise damaged(self._files.address(path), "is missing")
            entry = self._parsed(contents[path], number)
            if entry.before != before:
                raise damaged(self._files.address(path), "does not follow the entry before it")
            before = sha256(contents[path])
            entries.append(entry)
        return entries

    def _newest(self) -> tuple[Entry, bytes] | None:
        numbers = self._numbers()
        if not numbers:
            return None
        content = self._read(max(numbers))
        return self._parsed(content, max(numbers)), content

    def _read(self, number: int) -> bytes:
        try:
            return self._files.read_record(self._path(number))
        except FileNotFoundError:
            raise damaged(self._files.address(self._path(number)), "is missing") from None

    def _parsed(self, content: bytes, number: int) -> Entry:
        return unseal(content, self._files.address(self._path(number)), self.name, number)

    def _numbers(self) -> list[int]:
        return [int(found[1]) for name in self._files.names(self._folder) if (found := _ENTRY.fullmatch(name))]

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number:08d}.json"
