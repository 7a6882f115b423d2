"""The store: immutable versions of prompts in a folder, and aliases such as `production` that say which one is live.

    objects/<digest>/                    a prompt folder as TunedPrompt.save writes it, shared by all versions with this content
    prompts/<name>/versions/<n>.json     one VersionRecord; the numbers are claimed in order and never reused
    prompts/<name>/aliases.json          alias -> live version and the history of its moves

Whatever happens to a writer, readers see the old state or the new one: objects appear by rename, versions by link, aliases by replace.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

from prompt_core.errors import PromptmillError, nearest
from prompt_core.records import Alias, Aliases, PromptSummary, VersionRecord, now, read_record, write_beside

if TYPE_CHECKING:
    from prompt_core.artifact import TunedPrompt

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]{0,99}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Publishable(Protocol):
    """What a store keeps: a prompt that names itself, knows the digest of its content and writes itself to a folder."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    def save(self, folder: Path, /) -> None: ...


_Summaries = list[PromptSummary]  # inside the class, `list` is the method


class PromptStore:
    """Published prompts in a local folder.

    Args:
        url: a path or a file:/// URL. The folder is made on the first publication.

    Raises:
        PromptmillError: another scheme.
    """

    def __init__(self, url: str | Path) -> None:
        parts = urlsplit(str(url))
        if "://" in str(url) and parts.scheme != "file":
            raise PromptmillError(f"store {url}", f'scheme "{parts.scheme}" is not supported', "Give a local folder or file:///path.")
        if parts.scheme == "file" and parts.netloc not in ("", "localhost"):
            raise PromptmillError(f"store {url}", f'"{parts.netloc}" stands where a host name does', "Write file:/// and an absolute path.")
        self.root = Path(url2pathname(parts.path)) if parts.scheme == "file" else Path(url).expanduser()

    def publish(self, prompt: Publishable, evaluation: Mapping[str, Any], *, why: str = "") -> int:
        """Record a prompt as the next version of its name. No alias moves.

        Args:
            evaluation: JSON types; `evaluation["verdict"]["passed"]` must be True.

        Returns:
            The version; for content that this name has already, the version it has, and nothing is written.

        Raises:
            PromptmillError: the evaluation did not pass, the name is not plain, or the folder cannot be written.
        """
        folder = self._folder(prompt.name)
        verdict = evaluation.get("verdict")
        if not isinstance(verdict, Mapping) or verdict.get("passed") is not True:
            what = f"did not pass its evaluation (verdict: {verdict})"
            raise PromptmillError(f"prompt {prompt.name}", what, "Only a prompt that passed is published.")
        if not _DIGEST.fullmatch(prompt.digest):
            raise ValueError(f"digest {prompt.digest!r} is not 64 hex characters")
        with self._writing():
            versions = folder / "versions"
            versions.mkdir(parents=True, exist_ok=True)
            return self._claim(prompt, versions, dict(evaluation), why)

    def get(self, name: str, version: int | str = "production") -> TunedPrompt:
        """Load a version, given by number or alias; its content is checked against the recorded digest.

        Raises:
            PromptmillError: there is no such prompt, version or alias, or the stored content is damaged.
        """
        record = self.record(name, version)
        folder = self.path(name, record.version)
        from prompt_core.artifact import TunedPrompt  # torch loads when there is something to load

        prompt = TunedPrompt.load(folder)
        if prompt.digest != record.digest:
            raise PromptmillError(str(folder), f"holds content with digest {prompt.digest}", "The store is damaged; restore the folder.")
        return prompt

    def live(self, name: str) -> TunedPrompt | None:
        """The prompt in production; None where the name is not published or no version is live.

        Raises:
            PromptmillError: the name is not plain, or the stored content is damaged.
        """
        return self.get(name) if "production" in _read_aliases(self._folder(name)) else None

    def record(self, name: str, version: int | str) -> VersionRecord:
        """What was recorded when a version was published."""
        return read_record(self._folder(name) / "versions" / f"{self.resolve(name, version)}.json", VersionRecord)

    def path(self, name: str, version: int | str) -> Path:
        """The folder with a version's content."""
        folder = self.root / "objects" / self.record(name, version).digest
        if not folder.is_dir():
            raise PromptmillError(str(folder), f'the content of prompt "{name}" version {version} is missing', "Restore the folder.")
        return folder

    def resolve(self, name: str, version: int | str) -> int:
        """The number of a version that is given by number or alias.

        Raises:
            PromptmillError: there is no such prompt, version or alias.
        """
        folder = self._folder(name)
        versions = _numbers(folder / "versions")
        if not versions:
            known = [summary.name for summary in self.list()]
            raise PromptmillError(f"store {self.root}", f'there is no prompt "{name}"', nearest(name, known) or "The store is empty.")
        where = f"store {self.root}: prompt {name}"
        if isinstance(version, int) or version.isdecimal():
            if int(version) not in versions:
                raise PromptmillError(where, f"there is no version {version}", f"Known: {', '.join(map(str, versions))}.")
            return int(version)
        aliases = _read_aliases(folder)
        if version not in aliases:
            fix = nearest(version, aliases) or f"No alias is set; promote one of the versions {', '.join(map(str, versions))}."
            raise PromptmillError(where, f'there is no alias "{version}"', fix)
        return aliases[version].version

    def promote(self, name: str, version: int | str, alias: str = "production", who: str = "", why: str = "", force: bool = False) -> None:
        """Let an alias stand for a version. Where it does already, nothing is recorded.

        Args:
            force: also to an older version than the live one, which otherwise is taken for a late job and refused.

        Raises:
            PromptmillError: there is no such prompt or version, the alias is not a plain name, or the version is older.
        """
        _check_alias(alias)
        number = self.resolve(name, version)
        with self._moving(name) as aliases:
            live = aliases[alias].version if alias in aliases else 0
            if number < live and not force:
                what = f"version {number} is older than {live}, which is live"
                raise PromptmillError(f"prompt {name}, alias {alias}", what, "Roll back, or force it.")
            if number != live:
                aliases[alias] = Alias.moved(aliases.get(alias), number, who, why)

    def rollback(self, name: str, alias: str = "production", why: str = "") -> int:
        """Let an alias stand for the version it had before the live one was promoted; again, for the one before that.

        Returns:
            The version that is live now.

        Raises:
            PromptmillError: there is no such prompt or alias, or no version before.
        """
        _check_alias(alias)
        self.resolve(name, alias)
        with self._moving(name) as aliases:
            live = aliases[alias]
            number = live.before()
            if number is None:
                what = f"there is no version before {live.version} to go back to"
                raise PromptmillError(f"prompt {name}, alias {alias}", what, "Promote another version.")
            aliases[alias] = Alias.moved(live, number, "", why or f"rollback from version {live.version}")
        return number

    def list(self) -> _Summaries:
        """All prompts by name."""
        folders = sorted(self.root.glob("prompts/*"))
        return [
            PromptSummary(name=folder.name, versions=versions, aliases={k: a.version for k, a in sorted(_read_aliases(folder).items())})
            for folder in folders
            if (versions := _numbers(folder / "versions"))
        ]

    def _folder(self, name: str) -> Path:
        _check_name(name, "prompt")
        return self.root / "prompts" / name

    def _claim(self, prompt: Publishable, versions: Path, evaluation: dict[str, Any], why: str) -> int:
        while True:
            numbers = _numbers(versions)
            for number in numbers:
                if read_record(versions / f"{number}.json", VersionRecord).digest == prompt.digest:
                    return number
            self._keep(prompt)
            record = VersionRecord(
                name=prompt.name,
                version=max(numbers, default=0) + 1,
                digest=prompt.digest,
                published=now(),
                why=why,
                evaluation=evaluation,
            )
            beside = write_beside(versions / "new", record)
            try:
                # A link, unlike a rename, fails where the number is taken: then another publisher was first, and we look again.
                os.link(beside, versions / f"{record.version}.json")
                return record.version
            except FileExistsError:
                continue
            finally:
                beside.unlink()

    def _keep(self, prompt: Publishable) -> None:
        """Put the prompt's folder under objects/, unless that content is there."""
        folder = self.root / "objects" / prompt.digest
        if folder.is_dir():
            return
        folder.parent.mkdir(exist_ok=True)
        beside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
        try:
            content = beside / "content"
            prompt.save(content)
            for path in content.rglob("*"):
                if path.is_file():
                    _sync(path)
            content.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another publisher of the same content was first
                raise
        finally:
            shutil.rmtree(beside)

    @contextmanager
    def _moving(self, name: str) -> Iterator[dict[str, Alias]]:
        """The aliases of a prompt, to be changed in place; written when the block ends without an error."""
        folder = self._folder(name)
        with self._writing(), (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            aliases = _read_aliases(folder)
            before = dict(aliases)
            yield aliases
            if aliases != before:
                path = folder / "aliases.json"
                write_beside(path, Aliases(aliases)).replace(path)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise PromptmillError(f"store {self.root}", f"cannot be written ({error})", "Give a folder that you can write to.") from error


def _check_alias(alias: str) -> None:
    _check_name(alias, "alias")
    if alias.isdecimal():
        raise PromptmillError(f"alias {alias}", "is a number, which stands for a version", "Name it with a letter.")


def _check_name(name: str, kind: str) -> None:
    if not _NAME.fullmatch(name):
        fix = "Use letters, digits, _ and - (at most 100), starting with a letter or digit."
        raise PromptmillError(f"{kind} {name!r}", "is not a plain name", fix)


def _numbers(versions: Path) -> tuple[int, ...]:
    return tuple(sorted(int(path.stem) for path in versions.glob("*.json") if path.stem.isdecimal()))


def _read_aliases(folder: Path) -> dict[str, Alias]:
    path = folder / "aliases.json"
    return read_record(path, Aliases).root if path.exists() else {}


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
