"""The one thing that a store asks of a file system: create a whole file where there is none, or say that there is one.

Nothing is ever renamed, locked or overwritten, so that the same few lines hold on a disk and on an object store. Of two writers
that create the same path at the same time exactly one succeeds, and whoever reads it sees all of its bytes or no file.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import fsspec

from prompt_core.durable import make_folder, sync
from prompt_core.errors import PromptmillError, Unreachable, kind_of_fault

LARGEST_RECORD = 16 * 2**20  # bytes of a JSON file
_MARK, _FORMAT = "store.json", b'{"format": "promptmill-store/1"}\n'
_HALF_WRITTEN = ".new"
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
Listed = dict[str, Any]  # what a file system says of a file: its `size` in bytes, when it was written, a tag of its content


class Files:
    """Files below one address of an object store or another fsspec file system. Paths are relative and divided by `/`.

    Raises:
        Unreachable: from every method, when the file system cannot be reached.
        PromptmillError: from every method, when it refuses.
    """

    local_root: Path | None = None

    def __init__(self, url: str, filesystem: Any, root: str) -> None:
        self.url, self._fs, self._root = url, filesystem, root.rstrip("/")
        # adlfs knows `overwrite` where the others know `mode`
        azure = urlsplit(url).scheme in ("az", "abfs")
        self._exclusive: dict[str, Any] = {"mode": "create"} | ({"overwrite": False} if azure else {})
        self._proven = False

    def create(self, path: str, content: bytes) -> bool:
        """Write a whole file; True when it is written and durable, False where there is one by this name."""
        with self._one_line("written"):
            try:
                self._prove_exclusive()
                return self._create(path, content)
            except FileNotFoundError as error:  # a bucket that does not exist
                raise self._fault("written", error) from error

    def write_new(self, folder: str, contents: Mapping[str, bytes]) -> None:
        """Write the files of a folder that nobody else writes to or looks at yet; durable when it returns."""
        with self._one_line("written"):
            try:
                self._prove_exclusive()
                self._write_new(folder, contents)
            except FileNotFoundError as error:
                raise self._fault("written", error) from error

    def read(self, path: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._one_line("read"):
            content: bytes = self._fs.cat_file(self._full(path))
        return content

    def read_record(self, path: str) -> bytes:
        """The content of a JSON file; no more of it is read than such a file may hold.

        Raises:
            FileNotFoundError: there is none.
            PromptmillError: it is larger.
        """
        with self._one_line("read"):
            content = self._beginning(path, LARGEST_RECORD + 1)
        self._check_size(path, len(content))
        return content

    def read_records(self, listed: Mapping[str, Listed]) -> dict[str, bytes]:
        """The content of many JSON files that were listed; those that are gone are left out.

        Raises:
            PromptmillError: one is larger than such a file may be.
        """
        for path, said in listed.items():
            self._check_size(path, said["size"] or 0)
        return self.read_all(list(listed))

    def read_all(self, paths: Sequence[str]) -> dict[str, bytes]:
        """The content of many files, at the same time where the file system can; files that are gone are left out."""
        with self._one_line("read"):
            return self._read_all(paths)

    def names(self, folder: str) -> list[str]:
        """The names of what lies directly in a folder; none where there is no such folder."""
        return sorted(path.rsplit("/", 1)[-1] for path in self._listing(folder))

    def find(self, folder: str) -> dict[str, Listed]:
        """All files below a folder."""
        with self._one_line("read"):
            try:
                found = self._fs.find(self._full(folder), detail=True)
            except FileNotFoundError:
                return {}
        return self._by_path(found.values())

    def find_in_each(self, folder: str, name: str) -> dict[str, Listed]:
        """The files that lie directly in any `<folder>/*/<name>`."""
        # One request lists a thousand files of whatever folders; one for each folder would be thousands.
        wanted = re.compile(rf"{folder}/[^/]+/{name}/[^/]+")
        return {path: said for path, said in self.find(folder).items() if wanted.fullmatch(path)}

    def has_mark(self) -> bool:
        """Whether anybody published here."""
        try:
            return self.read_record(_MARK) == _FORMAT
        except FileNotFoundError:
            return False

    def age(self, path: str) -> float:
        """Seconds since a file was written; 0 for one that is gone."""
        with self._one_line("read"):
            try:
                written: datetime = self._fs.modified(self._full(path))
            except FileNotFoundError:
                return 0.0
        return (datetime.now(UTC) - (written if written.tzinfo else written.replace(tzinfo=UTC))).total_seconds()

    def remove(self, path: str) -> None:
        """Remove a file, or a folder with all that is in it. What is gone already is no error."""
        with self._one_line("written"):
            try:
                self._fs.rm(self._full(path), recursive=True)
            except FileNotFoundError:
                return

    def half_written(self) -> list[str]:
        """Files that a writer left behind when it died."""
        return []

    def address(self, path: str) -> str:
        """A path as people can open it."""
        return f"{self.url.rstrip('/')}/{path}"

    def _check_size(self, path: str, size: int) -> None:
        if size > LARGEST_RECORD:
            raise PromptmillError(self.address(path), f"is larger than {LARGEST_RECORD} bytes", "The store is damaged; restore this file.")

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}".rstrip("/")

    def _listing(self, folder: str) -> dict[str, Listed]:
        with self._one_line("read"):
            try:
                found = self._by_path(self._fs.ls(self._full(folder), detail=True, refresh=True))
            except FileNotFoundError:
                return {}
        return {path: said for path, said in found.items() if path != folder}

    def _by_path(self, found: Iterable[Listed]) -> dict[str, Listed]:
        start = len(self._full("")) + 1
        return {said["name"].rstrip("/")[start:]: said for said in found}

    def _beginning(self, path: str, size: int) -> bytes:
        try:
            content: bytes = self._fs.cat_file(self._full(path), start=0, end=size)
        except FileNotFoundError:
            raise
        except Exception:
            if self._fs.size(self._full(path)) != 0:  # no range of an empty object can be had
                raise
            return b""
        return content

    def _read_all(self, paths: Sequence[str]) -> dict[str, bytes]:
        found = self._fs.cat([self._full(path) for path in paths], on_error="return") if paths else {}
        for content in found.values():
            if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                raise content
        contents = {path: found[self._full(path)] for path in paths}
        return {path: content for path, content in contents.items() if isinstance(content, bytes)}

    def _create(self, path: str, content: bytes) -> bool:
        try:
            self._fs.pipe_file(self._full(path), content, **self._exclusive)
        except FileExistsError:
            return False
        except Exception:
            # Some clients have other words for it; and when an answer was lost on the way, the repeated request finds the first one's file.
            self._fs.invalidate_cache()
            if self._fs.exists(self._full(path)):
                return False
            raise
        return True

    def _write_new(self, folder: str, contents: Mapping[str, bytes]) -> None:
        self._fs.pipe({self._full(f"{folder}/{path}"): content for path, content in contents.items()})

    def _prove_exclusive(self) -> None:
        """Creating the store's mark twice must fail; else publishers would overwrite each other without a word."""
        if self._proven:
            return
        if self._create(_MARK, _FORMAT) and self._create(_MARK, _FORMAT):
            what = "overwrites a file where it was told to create one, so that two publishers could lose a version"
            raise PromptmillError(f"store {self.url}", what, "Use a file system with conditional writes, as S3, GCS and Azure have.")
        if self.read_record(_MARK) != _FORMAT:
            raise PromptmillError(self.address(_MARK), "is not the mark of a prompt store", "Give an empty folder or another store.")
        self._proven = True

    @contextmanager
    def _one_line(self, done: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, PromptmillError):
            raise
        except Exception as error:
            raise self._fault(done, error) from error

    def _fault(self, done: str, error: Exception) -> PromptmillError:
        # Every client library has exceptions of its own for a network that fails.
        kind = kind_of_fault(error) if isinstance(error, OSError) else Unreachable
        reason = " ".join(str(error).split()) or type(error).__name__
        fix = "Give a folder that you can write to." if self.local_root else "Check the address, your rights and the network."
        return kind(f"store {self.url}", f"cannot be {done} ({reason})", fix)


class LocalFiles(Files):
    """Files in a local folder: written beside, synced to the disk, then linked to their name, which fails where the name is taken."""

    def __init__(self, folder: Path) -> None:
        self.local_root = folder.absolute()
        super().__init__(str(folder), fsspec.filesystem("file"), str(self.local_root))

    def half_written(self) -> list[str]:
        return [f"{_HALF_WRITTEN}/{name}" for name in self.names(_HALF_WRITTEN)]

    def find_in_each(self, folder: str, name: str) -> dict[str, Listed]:
        # Here it is a walk through everything else that takes long.
        places = [place for place, said in self._listing(folder).items() if said["type"] != "file"]
        return {path: said for place in places for path, said in self._listing(f"{place}/{name}").items()}

    def remove(self, path: str) -> None:
        place = Path(self._full(path))
        with self._one_line("written"):
            try:
                shutil.rmtree(place) if place.is_dir() else place.unlink()
            except FileNotFoundError:
                return

    def _read_all(self, paths: Sequence[str]) -> dict[str, bytes]:
        # One by one: fsspec takes a folder named `a[1]` for a pattern.
        contents: dict[str, bytes] = {}
        for path in paths:
            with suppress(FileNotFoundError):
                contents[path] = Path(self._full(path)).read_bytes()
        return contents

    def _beginning(self, path: str, size: int) -> bytes:
        with Path(self._full(path)).open("rb", buffering=0) as file:
            return file.read(min(size, os.fstat(file.fileno()).st_size))

    def _create(self, path: str, content: bytes) -> bool:
        place = Path(self._full(path))
        while not place.exists():
            with self._written_beside(content) as written:
                try:
                    make_folder(place.parent)
                    os.link(written, place)
                except FileExistsError:
                    return False
                except FileNotFoundError:
                    if written.exists():
                        raise
                    continue  # a collection with too short a grace took it for what a dead writer left
            sync(place.parent)
            return True
        return False

    @contextmanager
    def _written_beside(self, content: bytes) -> Iterator[Path]:
        beside = Path(self._full(_HALF_WRITTEN))
        make_folder(beside)
        descriptor, name = tempfile.mkstemp(dir=beside)
        written = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, 0o644)  # mkstemp's files are private, but consumers may be other users
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            yield written
        finally:
            written.unlink(missing_ok=True)

    def _write_new(self, folder: str, contents: Mapping[str, bytes]) -> None:
        folders = {Path(self._full(folder))}
        for path, content in contents.items():
            place = Path(self._full(f"{folder}/{path}"))
            folders.add(place.parent)
            make_folder(place.parent)
            with place.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for written in folders:
            sync(written)


def open_files(url: str | Path) -> Files:
    """The files below a path or URL.

    Raises:
        PromptmillError: no such kind of file system is known or installed.
    """
    given, parts = str(url), urlsplit(str(url))
    if "://" not in given:
        return LocalFiles(Path(given).expanduser())
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            what = f'"{parts.netloc}" stands where a host name does'
            raise PromptmillError(f"store {given}", what, "Write file:/// and an absolute path.")
        return LocalFiles(Path(url2pathname(parts.path)))
    try:
        filesystem, root = fsspec.core.url_to_fs(given, use_listings_cache=False)
    except ImportError:
        package = _PACKAGES.get(parts.scheme, "the fsspec package for it")
        raise PromptmillError(f"store {given}", f'scheme "{parts.scheme}" needs {package}', f"Install {package}.") from None
    except ValueError as error:
        fix = "Give a folder, file:///path, s3://bucket/path, gs://bucket/path or az://container/path."
        raise PromptmillError(f"store {given}", f'scheme "{parts.scheme}" is not supported ({error})', fix) from None
    return Files(given, filesystem, root)
