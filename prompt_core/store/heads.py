"""The newest log entry of every prompt, read once: where nothing changed, a look at the store is a listing."""

from __future__ import annotations

import re

from prompt_core.store.filesystem import Files, Listed
from prompt_core.store.records import State, damaged, is_plain_name, unseal

_ENTRY = re.compile(r"prompts/([^/]+)/log/(\d{8})\.json")


class Heads:
    """What holds for every prompt of a store. May be used by several threads.

    An entry never changes, but in a store that was restored or made anew another file may have its name: that one is listed
    differently, and read again.
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._known: dict[str, tuple[Listed, State]] = {}  # of newest entries by their path

    def states(self) -> dict[str, State]:
        """The state of every prompt that has a log, by name.

        Raises:
            PromptmillError: the store cannot be read, or a newest entry was changed.
        """
        listed, known = self._files.find_in_each("prompts", "log"), self._known
        newest = {found[1]: found for path in sorted(listed) if (found := _ENTRY.fullmatch(path)) and is_plain_name(found[1])}
        paths = [found[0] for found in newest.values()]
        unread = {path: listed[path] for path in paths if path not in known or known[path][0] != listed[path]}
        contents = self._files.read_records(unread)
        states = {name: self._parsed(contents, found) if found[0] in unread else known[found[0]][1] for name, found in newest.items()}
        self._known = {found[0]: (listed[found[0]], states[name]) for name, found in newest.items()}
        return dict(sorted(states.items()))

    def _parsed(self, contents: dict[str, bytes], found: re.Match[str]) -> State:
        path, name, number = found[0], found[1], int(found[2])
        if path not in contents:
            raise damaged(self._files.address(path), "is missing")
        return unseal(contents[path], self._files.address(path), name, number).state
