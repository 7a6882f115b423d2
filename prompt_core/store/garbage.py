"""What a store can do without: versions that no alias needs any more, and what publishers left behind when they died."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import groupby

from pydantic import BaseModel, ConfigDict

from prompt_core.store.contents import Contents
from prompt_core.store.log import Log
from prompt_core.store.records import Change, Entry, Moved, Published, Removed, State, Withdrawn


class _Found(BaseModel):
    model_config = ConfigDict(frozen=True)


class GarbageVersion(_Found):
    """A version that nothing needs, and its size."""

    name: str
    version: int
    bytes: int


class Leftover(_Found):
    """Content that was never published, and its size."""

    name: str
    folder: str
    bytes: int


class Garbage(_Found):
    """What can go, or went: versions, unpublished content, and the paths of half-written files of a local store."""

    versions: tuple[GarbageVersion, ...]
    leftovers: tuple[Leftover, ...]
    half_written: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """The size of all versions and unpublished content."""
        return sum(version.bytes for version in self.versions) + sum(leftover.bytes for leftover in self.leftovers)

    @classmethod
    def together(cls, found: Iterable[Garbage]) -> Garbage:
        """That of several prompts."""
        parts = list(found)
        return cls(versions=tuple(v for part in parts for v in part.versions), leftovers=tuple(f for part in parts for f in part.leftovers))


def find_garbage(log: Log, contents: Contents, keep: int, grace: float, who: str = "", why: str = "") -> Garbage:
    """What of one prompt can go; nothing is changed. `who` and `why` are for `collect`, which takes the same."""
    entries = log.entries()
    state = entries[-1].state if entries else State()
    return _described(log.name, state, _unneeded(state, entries, keep, grace), contents, grace)


def collect(log: Log, contents: Contents, keep: int, grace: float, who: str, why: str) -> Garbage:
    """Remove what of one prompt can go. Versions leave the log first, so that none can be promoted while its files vanish."""
    removed: State = State()
    unneeded: tuple[int, ...] = ()

    def remove(state: State) -> tuple[Change, State] | None:
        nonlocal removed, unneeded
        removed, unneeded = state, _unneeded(state, log.entries(), keep, grace)
        if not unneeded:
            return None
        versions = {number: content for number, content in state.versions.items() if number not in unneeded}
        aliases = {alias: _without(trail, unneeded) for alias, trail in state.aliases.items()}
        return Removed(versions=unneeded), state.model_copy(update={"versions": versions, "aliases": aliases})

    log.append(remove, who, why or "gc")
    garbage = _described(log.name, removed, unneeded, contents, grace)
    for number in unneeded:
        contents.remove(removed.versions[number].folder)
    for leftover in garbage.leftovers:
        contents.remove(leftover.folder)
    return garbage


def _unneeded(state: State, entries: Sequence[Entry], keep: int, grace: float) -> tuple[int, ...]:
    """Versions that no alias needs, nor its last `keep` moves, and that nobody published or moved within the grace.

    The entries may be newer than the state; then another writer was first, and the change is decided anew.
    """
    needed = {number for trail in state.aliases.values() for number in trail[-1 - keep :]}
    moves: dict[str, list[Moved | Withdrawn]] = defaultdict(list)
    for entry in entries:
        young = (datetime.now(UTC) - datetime.fromisoformat(entry.when)).total_seconds() < grace
        if isinstance(entry.change, Moved | Withdrawn):
            moves[entry.change.alias].append(entry.change)
            needed |= _versions(entry.change) if young else set()  # a reader who looked before the move may still be loading
        elif isinstance(entry.change, Published) and young:
            needed.add(entry.change.version)
    for made in moves.values():
        # A withdrawn version that was forgotten would be published anew, and go live, by the next job that makes it.
        kept = max(keep, 1) if isinstance(made[-1], Withdrawn) else keep
        for move in made[-kept:] if kept else ():
            needed |= _versions(move)
    return tuple(sorted(state.versions.keys() - needed))


def _versions(move: Moved | Withdrawn) -> set[int]:
    """What an alias stood for before and after a move."""
    after = move.version if isinstance(move, Moved) else None
    return {number for number in (move.before, after) if number is not None}


def _described(name: str, state: State, unneeded: Sequence[int], contents: Contents, grace: float) -> Garbage:
    sizes = contents.sizes()
    published = {content.folder for content in state.versions.values()}
    return Garbage(
        versions=tuple(
            GarbageVersion(name=name, version=number, bytes=sum(sizes.get(state.versions[number].folder, {}).values()))
            for number in unneeded
        ),
        leftovers=tuple(
            Leftover(name=name, folder=folder, bytes=sum(files.values()))
            for folder, files in sorted(sizes.items())
            if folder not in published and contents.age(folder, files) >= grace
        ),
    )


def _without(trail: tuple[int, ...], removed: Sequence[int]) -> tuple[int, ...]:
    """A trail without versions that are gone, and without the repetitions that this leaves."""
    return tuple(number for number, _ in groupby(number for number in trail if number not in removed))
