"""The store: immutable versions of prompts, and aliases such as `production` that say which one is live.

    store.json                                    the mark of a store, and the proof that its file system creates exclusively
    prompts/<name>/log/<number>.json              the changes of a prompt in order, each with the whole state after it
    prompts/<name>/content/<digest>-<attempt>/    a prompt folder as TunedPrompt.save writes it, and publication.json

Whatever happens to a writer, readers see the old state or the new one: content is complete before a log entry names it, and an
entry appears whole or not at all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from prompt_core.errors import PromptmillError, nearest
from prompt_core.store.contents import Contents, Publishable
from prompt_core.store.filesystem import open_files
from prompt_core.store.garbage import Garbage, collect, find_garbage
from prompt_core.store.heads import Heads
from prompt_core.store.log import Log
from prompt_core.store.moves import PRODUCTION, check_alias, check_name, check_reason, promoted, rolled_back, taken_off, withdrawn
from prompt_core.store.publications import check_forced, same_content
from prompt_core.store.records import (
    AliasMove,
    Change,
    Content,
    Moved,
    PromptSummary,
    Published,
    State,
    VersionRecord,
    Withdrawn,
    is_plain_name,
    passed,
)
from prompt_core.store.verify import Verified, verify_prompt

if TYPE_CHECKING:
    from prompt_core.artifact import TunedPrompt

_log = logging.getLogger(__name__)
_DAY = 24 * 3600.0
_Summaries = list[PromptSummary]  # inside the class, `list` is the method


class PromptStore:
    """Published prompts below one address.

    Args:
        url: a path or a URL that fsspec knows: file:///, s3://, gs://, az://, memory://. What is not there is made by the first
            publication.

    Raises:
        PromptmillError: the scheme is unknown or its package is not installed; from every method, where the store cannot be
            reached or is damaged.
    """

    def __init__(self, url: str | Path) -> None:
        self._files = open_files(url)
        self.url = self._files.url
        self._heads = Heads(self._files)

    def publish(
        self,
        prompt: Publishable,
        evaluation: Mapping[str, Any],
        *,
        who: str = "",
        why: str = "",
        force: bool = False,
        pages: Mapping[str, bytes] | None = None,
    ) -> int:
        """Record a prompt as the next version of its name. No alias moves.

        Args:
            evaluation: JSON types; `evaluation["verdict"]["passed"]` must be True.
            pages: files for people by name, such as a report: kept in the folder `pages`, no part of the digest.
            force: publish although the evaluation did not pass, for the reason `why`. Such a version goes into production by
                force only.

        Returns:
            The version; for content that this name has already, the version it has, and nothing is written. What did not
            pass then and does so now is published anew.

        Raises:
            PromptmillError: the evaluation did not pass and it is not forced, the name is not plain, or the store cannot be written.
        """
        log = self._log(prompt.name)
        good = passed(evaluation)
        if not good:
            check_forced(prompt.name, evaluation, force, why)
        found = same_content(log.state(), prompt.digest, good)
        if found:
            return found
        content = self._contents(prompt.name).put(prompt, evaluation, pages or {}, who=who, why=why, forced=not good)

        def claim(state: State) -> tuple[Change, State] | None:
            if same_content(state, prompt.digest, good):  # another publisher of the same content was first
                return None
            number = state.next_version
            update = {"next_version": number + 1, "versions": {**state.versions, number: content}}
            return Published(version=number), state.model_copy(update=update)

        version = same_content(log.append(claim, who, why), prompt.digest, good)
        assert version is not None
        return version

    def get(self, name: str, version: int | str = PRODUCTION) -> TunedPrompt:
        """Load a version, given by number or alias; its content is checked against the recorded digest.

        Of a version that was taken back and that no alias stands for, a warning is logged: whoever pinned its number goes on.

        Raises:
            PromptmillError: there is no such prompt, version or alias, or the stored content is damaged.
        """
        from prompt_core.artifact import TunedPrompt  # torch loads when there is something to load

        state = self._log(name).state()
        content, record = self._found(state, name, version)
        if aliases := taken_off(state, record.version):
            _log.warning("%s@%d was taken back from %s: `promptmill history %s` says why", name, record.version, ", ".join(aliases), name)
        with self._contents(name).checkout(content, record) as folder:
            prompt = TunedPrompt.load(folder)
        if prompt.digest != record.digest:
            raise PromptmillError(str(folder), f"holds content with digest {prompt.digest}", "The store is damaged; restore the folder.")
        return prompt

    def live(self, name: str) -> TunedPrompt | None:
        """The prompt in production; None where the name is not published or no version is live.

        Raises:
            PromptmillError: the name is not plain, or the stored content is damaged.
        """
        trail = self._log(name).state().aliases.get(PRODUCTION)
        return self.get(name, trail[-1]) if trail else None

    def record(self, name: str, version: int | str) -> VersionRecord:
        """What was recorded when a version was published."""
        return self._found(self._log(name).state(), name, version)[1]

    @contextmanager
    def checkout(self, name: str, version: int | str) -> Iterator[Path]:
        """A local folder with a version's files, to be read only: the store's own where it is local, else a copy for this block."""
        content, record = self._found(self._log(name).state(), name, version)
        with self._contents(name).checkout(content, record) as folder:
            yield folder

    def resolve(self, name: str, version: int | str) -> int:
        """The number of a version that is given by number or alias.

        Raises:
            PromptmillError: there is no such prompt, version or alias.
        """
        return self._number(self._log(name).state(), name, version)

    def find(self, given: str) -> tuple[str, int]:
        """Name and number of the version that `name` (in production), `name@3` or `name@alias` means.

        Raises:
            PromptmillError: there is no such prompt, version or alias.
        """
        name, _, version = given.partition("@")
        return name, self.resolve(name, version or PRODUCTION)

    def promote(
        self,
        name: str,
        version: int | str,
        alias: str = PRODUCTION,
        who: str = "",
        why: str = "",
        force: bool = False,
        instead_of: str | EllipsisType | None = ...,
    ) -> None:
        """Let an alias stand for a version. Where it does already, nothing is recorded.

        Args:
            force: set the rules aside, for the reason `why`, which the history keeps: `production` takes only what passed its
                evaluation; what was taken back stays back; and an older version than the live one is taken for a late job.
            instead_of: digest of the prompt that the alias has to stand for, None for nothing, as when the version was compared
                with that: between an evaluation and its promotion somebody may have moved the alias. Left out: not looked at.

        Raises:
            PromptmillError: there is no such prompt or version, the alias is not a plain name, or a rule is broken.
        """
        check_alias(alias)
        where = f"prompt {name}, alias {alias}"
        if force:
            check_reason(where, "forced", why)

        def move(state: State) -> tuple[Change, State] | None:
            return promoted(state, where, alias, self._number(state, name, version), force, instead_of)

        self._log(name).append(move, who, why)

    def rollback(self, name: str, alias: str = PRODUCTION, who: str = "", why: str = "") -> int:
        """Let an alias stand for the version it had before the live one was promoted; again, for the one before that.

        Returns:
            The version that is live now.

        Raises:
            PromptmillError: there is no such prompt or alias, or no version before.
        """
        check_alias(alias)

        def back(state: State) -> tuple[Change, State]:
            self._number(state, name, alias)
            return rolled_back(state, f"prompt {name}, alias {alias}", alias)

        return self._log(name).append(back, who, why or "rollback").aliases[alias][-1]

    def withdraw(self, name: str, alias: str = PRODUCTION, who: str = "", why: str = "") -> None:
        """Take an alias away: it stands for nothing until a version is promoted, and for the one it stood for by force alone.

        Raises:
            PromptmillError: there is no such prompt or alias, or no reason.
        """
        check_alias(alias)
        check_reason(f"prompt {name}, alias {alias}", "withdrawn", why)

        def away(state: State) -> tuple[Change, State]:
            self._number(state, name, alias)
            return withdrawn(state, alias)

        self._log(name).append(away, who, why)

    def history(self, name: str, alias: str | None = None) -> tuple[AliasMove, ...]:
        """All moves of one alias or of all, the first one first.

        Raises:
            PromptmillError: there is no such prompt, or the alias was never set.
        """
        entries = self._log(name).entries()
        if not entries:
            raise self._no_prompt(name)
        moves = [
            AliasMove(when=entry.when, who=entry.who, why=entry.why, **entry.change.model_dump(exclude={"kind"}))
            for entry in entries
            if isinstance(entry.change, Moved | Withdrawn)
        ]
        known = {move.alias for move in moves}
        if alias is not None and alias not in known:
            raise PromptmillError(f"store {self.url}: prompt {name}", f'there is no alias "{alias}"', nearest(alias, known))
        return tuple(move for move in moves if alias in (None, move.alias))

    def list(self) -> _Summaries:
        """All prompts by name."""
        return [
            PromptSummary(
                name=name,
                versions=tuple(sorted(state.versions)),
                aliases={alias: trail[-1] for alias, trail in sorted(state.aliases.items())},
                taken_back={number: tuple(off) for number in sorted(state.versions) if (off := taken_off(state, number))},
            )
            for name, state in self._heads.states().items()
            if state.versions
        ]

    def check_exists(self) -> None:
        """Tell a wrong address from an empty store: it is for callers that found no prompt here.

        Raises:
            PromptmillError: nobody published at this address.
        """
        if not self._files.has_mark():
            fix = "Name the right one with --store or PROMPTMILL_STORE; the first `promptmill evaluate --publish` makes a new one."
            raise PromptmillError(f"store {self.url}", "there is no prompt store at this address", fix)

    def verify(self, name: str | None = None) -> Verified:
        """Read everything and compare it with its digests: every log entry, publication and file, of one prompt or of all."""
        if name is not None:
            self._existing(name)
        found = [verify_prompt(self._log(one), self._contents(one)) for one in ([name] if name else self._names())]
        return Verified.together(found)

    def gc(
        self, name: str | None = None, *, keep: int = 5, grace: float = _DAY, delete: bool = False, who: str = "", why: str = ""
    ) -> Garbage:
        """Find, and with `delete` remove, versions that nothing needs and what dead publishers left behind.

        Needed is what an alias stands for (withdrawn: stood for last), what it stood for in its last `keep` moves, and what is younger
        than `grace` seconds: a publisher writes its content before anybody can see that it is needed. A grace shorter than a
        publication takes is not safe.

        Returns:
            What would be removed, or was.
        """
        if name is not None:
            self._existing(name)
        garbage = Garbage.together(
            (collect if delete else find_garbage)(self._log(one), self._contents(one), keep, grace, who, why)
            for one in ([name] if name else self._names())
        )
        left = tuple(path for path in self._files.half_written() if self._files.age(path) >= grace)
        if delete:
            for path in left:
                self._files.remove(path)
        return garbage.model_copy(update={"half_written": left})

    def _names(self) -> Sequence[str]:
        return [name for name in self._files.names("prompts") if is_plain_name(name)]

    def _log(self, name: str) -> Log:
        check_name(name, "prompt")
        return Log(self._files, name)

    def _contents(self, name: str) -> Contents:
        return Contents(self._files, name)

    def _found(self, state: State, name: str, version: int | str) -> tuple[Content, VersionRecord]:
        number = self._number(state, name, version)
        content = state.versions[number]
        return content, self._contents(name).record(content, number)

    def _number(self, state: State, name: str, version: int | str) -> int:
        if not state.versions:
            raise self._no_prompt(name)
        where, known = f"store {self.url}: prompt {name}", ", ".join(map(str, sorted(state.versions)))
        if not isinstance(version, int | str):
            raise PromptmillError(where, f"{version!r} is neither a version nor an alias", f"Known: {known}.")
        if isinstance(version, int) or (version.isascii() and version.isdecimal()):
            if len(str(version)) > 9 or int(version) not in state.versions:
                raise PromptmillError(where, f"there is no version {str(version)[:20]}", f"Known: {known}.")
            return int(version)
        if version not in state.aliases:
            fix = nearest(version, state.aliases) or f"No alias is set; promote one of the versions {known}."
            raise PromptmillError(where, f'there is no alias "{version}"', fix)
        return state.aliases[version][-1]

    def _existing(self, name: str) -> None:
        if not self._log(name).state().versions:
            raise self._no_prompt(name)

    def _no_prompt(self, name: str) -> PromptmillError:
        known = [summary.name for summary in self.list()]
        if not known:
            self.check_exists()
        return PromptmillError(f"store {self.url}", f'there is no prompt "{name}"', nearest(name, known) or "The store is empty.")
