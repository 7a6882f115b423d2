"""The content of versions: one folder per publication, written once, complete before any log entry names it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from prompt_core.errors import PromptmillError
from prompt_core.store.filesystem import LARGEST_RECORD, Files
from prompt_core.store.records import Content, Publication, VersionRecord, as_json, damaged, now, parse, passed, sha256

PAGES = "pages"
_PUBLICATION = "publication.json"


class Publishable(Protocol):
    """What a store keeps: a prompt that names itself, knows the digest of its content and writes itself to a folder."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    def save(self, folder: Path, /) -> None: ...


class Contents:
    """The folders with the content of one prompt's versions."""

    def __init__(self, files: Files, name: str) -> None:
        self._name, self._files, self._folder = name, files, f"prompts/{name}/content"

    def put(
        self, prompt: Publishable, evaluation: Mapping[str, Any], pages: Mapping[str, bytes], *, who: str, why: str, forced: bool
    ) -> Content:
        """Write a prompt into a folder of its own, and beside it pages for people and the record of its publication.

        Raises:
            PromptmillError: the record is larger than readers take.
        """
        with tempfile.TemporaryDirectory() as beside:
            prompt.save(Path(beside, "prompt"))
            root = Path(beside, "prompt")
            written = {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
        written |= {f"{PAGES}/{name}": content for name, content in pages.items()}
        publication = Publication(
            name=prompt.name,
            digest=prompt.digest,
            published=now(),
            who=who,
            why=why,
            forced=forced,
            evaluation=dict(evaluation),
            files={path: sha256(content) for path, content in written.items()},
        )
        folder, record = f"{prompt.digest}-{uuid4().hex[:8]}", as_json(publication)
        if len(record) > LARGEST_RECORD:
            what = f"its evaluation takes {len(record):,} bytes as JSON, a store reads {LARGEST_RECORD:,}"
            raise PromptmillError(f"prompt {prompt.name}", what, "Shorten the longest test inputs, which it quotes.")
        self._files.write_new(f"{self._folder}/{folder}", {**written, _PUBLICATION: record})
        return Content(digest=prompt.digest, folder=folder, publication=sha256(record), passed=passed(evaluation))

    def record(self, content: Content, version: int) -> VersionRecord:
        """What was recorded when a version was published.

        Raises:
            PromptmillError: it is missing or was changed.
        """
        found = self._checked(content, _PUBLICATION, content.publication, self._files.read_record)
        publication = parse(found, self.address(content, _PUBLICATION), Publication)
        if (publication.name, publication.digest, passed(publication.evaluation)) != (self._name, content.digest, content.passed):
            raise damaged(self.address(content, _PUBLICATION), f"is of prompt {publication.name}, digest {publication.digest[:12]}")
        return VersionRecord(version=version, **publication.model_dump())

    @contextmanager
    def checkout(self, content: Content, record: VersionRecord) -> Iterator[Path]:
        """A local folder with a version's files: the store's own where it is local, else a copy that lives as long as the block.

        Raises:
            PromptmillError: a file is missing.
        """
        if self._files.local_root:
            folder = self._files.local_root / self._folder / content.folder
            for path in record.files:
                if not (folder / path).is_file():
                    raise damaged(self.address(content, path), "is missing")
            yield folder
            return
        with tempfile.TemporaryDirectory(prefix="promptmill-") as beside:
            for path, found in self._all_files(content, record).items():
                copy = Path(beside, path)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(found)
            yield Path(beside)

    def check(self, content: Content, record: VersionRecord) -> int:
        """Compare every file of a version with its recorded digest.

        Returns:
            Their size in bytes.

        Raises:
            PromptmillError: one is missing or was changed.
        """
        return sum(len(self._checked(content, path, digest, self._files.read)) for path, digest in record.files.items())

    def sizes(self) -> dict[str, dict[str, int]]:
        """Every folder that is there, whether a version needs it or not: its files with their sizes in bytes."""
        folders: dict[str, dict[str, int]] = {}
        for path, listed in self._files.find(self._folder).items():
            folder, _, file = path.removeprefix(f"{self._folder}/").partition("/")
            folders.setdefault(folder, {})[file] = listed["size"] or 0
        return folders

    def age(self, folder: str, paths: Mapping[str, int]) -> float:
        """Seconds since the last file of a folder was written."""
        return min(self._files.age(f"{self._folder}/{folder}/{path}") for path in paths)

    def remove(self, folder: str) -> None:
        """Remove a folder that no version needs."""
        self._files.remove(f"{self._folder}/{folder}")

    def address(self, content: Content, path: str) -> str:
        """A file of a version as people can open it."""
        return self._files.address(f"{self._folder}/{content.folder}/{path}")

    def _all_files(self, content: Content, record: VersionRecord) -> dict[str, bytes]:
        base = f"{self._folder}/{content.folder}/"
        found = self._files.read_all([base + path for path in record.files])
        for path in record.files:
            if base + path not in found:
                raise damaged(self.address(content, path), "is missing")
        return {path: found[base + path] for path in record.files}

    def _checked(self, content: Content, path: str, digest: str, read: Callable[[str], bytes]) -> bytes:
        try:
            found = read(f"{self._folder}/{content.folder}/{path}")
        except FileNotFoundError:
            raise damaged(self.address(content, path), "is missing") from None
        if sha256(found) != digest:
            raise damaged(self.address(content, path), f"has the digest {sha256(found)[:12]}, recorded is {digest[:12]}")
        return found
