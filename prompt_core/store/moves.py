"""The rules by which an alias moves from one version to another, or is taken away."""

from __future__ import annotations

from types import EllipsisType

from prompt_core.errors import PromptmillError
from prompt_core.store.records import Change, Moved, State, Withdrawn, is_plain_name

PRODUCTION = "production"


def promoted(
    state: State, where: str, alias: str, number: int, force: bool, instead_of: str | EllipsisType | None = ...
) -> tuple[Change, State] | None:
    """The move of an alias to a version; None where it stands for that version already.

    Args:
        where: names prompt and alias in errors.
        force: set the rules aside; the move says so where one was.
        instead_of: digest of what the alias has to stand for, None for nothing; left out: not looked at. Where it is right nobody
            is late, and the version may be older than the live one.

    Raises:
        PromptmillError: the alias is `production` and the version did not pass, the version was taken back or is older than
            the live one, or the alias stands for something else than `instead_of`.
    """
    trail = state.aliases.get(alias, ())
    live = trail[-1] if trail else None
    if number == live:
        return None
    broken = _broken_rule(state, alias, number, live, instead_of)
    if broken and not force:
        raise PromptmillError(where, *broken)
    # A move back to the version before, by force, counts as taking the last one off.
    after = trail[:-1] if broken and trail[-2:-1] == (number,) else (*trail, number)
    return _moved(state, alias, after, forced=bool(broken))


def rolled_back(state: State, where: str, alias: str) -> tuple[Change, State]:
    """The move of an alias to the version it had before.

    Raises:
        PromptmillError: there is none.
    """
    trail = state.aliases[alias]
    if len(trail) == 1:
        raise PromptmillError(
            where, f"there is no version before {trail[-1]} to go back to", "Promote another version, or withdraw the alias."
        )
    # What went into production by force once comes back so.
    forced = alias == PRODUCTION and not state.versions[trail[-2]].passed
    return _moved(state, alias, trail[:-1], forced)


def withdrawn(state: State, alias: str) -> tuple[Change, State]:
    """The end of an alias. The version that it stood for counts as taken back, so that no job puts it there again by itself."""
    live = state.aliases[alias][-1]
    aliases = {name: trail for name, trail in state.aliases.items() if name != alias}
    off = {*state.taken_back.get(alias, ()), live}
    update = {"aliases": aliases, "taken_back": {**state.taken_back, alias: tuple(sorted(off))}}
    return Withdrawn(alias=alias, before=live), state.model_copy(update=update)


def taken_off(state: State, number: int) -> list[str]:
    """The aliases that a version was taken off, by a rollback or withdrawn; none where an alias stands for its content now."""
    if not state.taken_back:
        return []
    digest = state.versions[number].digest
    if any(state.versions[trail[-1]].digest == digest for trail in state.aliases.values()):
        return []
    return [alias for alias in state.taken_back if _taken_back(state, alias, number)]


def check_reason(where: str, done: str, why: str) -> None:
    """Refuse without a reason what is to be explained; `done` says what is done, such as `forced`."""
    if not why.strip():
        raise PromptmillError(where, f"is {done} without a reason", "Say why; the reason is kept.")


def check_alias(alias: str) -> None:
    """Refuse what cannot name an alias."""
    check_name(alias, "alias")
    if alias.isdecimal():
        raise PromptmillError(f"alias {alias}", "is a number, which stands for a version", "Name it with a letter.")


def check_name(name: str, kind: str) -> None:
    """Refuse what is not a plain name; `kind` says what it should name."""
    if not is_plain_name(name):
        fix = "Use letters, digits, _ and - (at most 100), starting with a letter or digit."
        raise PromptmillError(f"{kind} {name[:200]!r}", "is not a plain name", fix)


def _broken_rule(state: State, alias: str, number: int, live: int | None, instead_of: str | EllipsisType | None) -> tuple[str, str] | None:
    """What speaks against a move, and the way out."""
    if alias == PRODUCTION and not state.versions[number].passed:
        return f"version {number} did not pass its evaluation", "Promote one that did, or force it with a reason."
    if _taken_back(state, alias, number):
        return f"version {number} was taken back", "Publish a better one, or force it with a reason."
    if live and state.versions[live].digest == state.versions[number].digest:
        return None  # what was forced there has passed since: the same prompt, which is not compared with itself
    if not isinstance(instead_of, EllipsisType):
        if instead_of == (state.versions[live].digest if live else None):
            return None
        stands = f"stands for version {live} by now" if live else "stands for nothing by now"
        return f"{stands}, with which version {number} was not compared", "Evaluate it again, or force it with a reason."
    if live is not None and number < live:
        return f"version {number} is older than {live}, which is live", "Roll back, or force it with a reason."
    return None


def _taken_back(state: State, alias: str, number: int) -> set[int]:
    """The versions with the content of this one that were taken off an alias: what was forced and passes later has two numbers."""
    found = {other: state.versions[other].digest for other in state.taken_back.get(alias, ()) if other in state.versions}
    return {other for other, digest in found.items() if digest == state.versions[number].digest}


def _moved(state: State, alias: str, trail: tuple[int, ...], forced: bool) -> tuple[Change, State]:
    walked, number = state.aliases.get(alias, ()), trail[-1]
    before, off = walked[-1] if walked else None, set(state.taken_back.get(alias, ())) - _taken_back(state, alias, number)
    if len(trail) < len(walked) and before is not None:
        off |= {before}
    taken_back = {**state.taken_back, alias: tuple(sorted(off))}
    update = {"aliases": {**state.aliases, alias: trail}, "taken_back": {name: numbers for name, numbers in taken_back.items() if numbers}}
    after = state.model_copy(update=update)
    return Moved(alias=alias, before=before, version=trail[-1], forced=forced), after
