"""What a user's mistake raises, and an outage that may pass: what was found, where, and the way out, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

_NAMES, _LETTERS = 30, 60  # shown in a message, of each name


class PromptmillError(ValueError):
    """Bad input from outside. Reads `where: what. fix`; the command line prints it and exits with status 2.

    Args:
        where: the file and field the user can open, such as ``tasks/returns.yaml: data.target``.
        what: what was found there, naming the value.
        fix: what to do about it.
    """

    def __init__(self, where: str, what: str, fix: str = "") -> None:
        self.where, self.what, self.fix = where, what, fix
        super().__init__(f"{where}: {what}." + (f" {fix}" if fix else ""))


class Unreachable(PromptmillError):
    """A fault of disk, network or server, not of the user: the same may succeed when it is tried again."""


# What a wrong path or missing rights make: the same again in a minute.
_LASTING = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def kind_of_fault(error: Exception) -> type[PromptmillError]:
    """What to raise of a fault in reading or writing: `Unreachable` for one of the operating system that may pass."""
    return Unreachable if isinstance(error, OSError) and not isinstance(error, _LASTING) else PromptmillError


def nearest(name: str, known: Iterable[str]) -> str:
    """`Did you mean "x"?` for the known name closest to `name`, or the list of known names when none is close."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f'Did you mean "{close[0]}"?'
    return f"Known: {listed(names)}." if names else ""


def listed(names: Sequence[str]) -> str:
    """The first 30 names and how many more there are, long ones cut to 60 characters."""
    more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
    return ", ".join(name if len(name) <= _LETTERS else f"{name[:_LETTERS]}..." for name in names[:_NAMES]) + more
