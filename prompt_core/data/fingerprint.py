"""Whether a task's files changed since somebody looked: by content, at the price of a look at a file's state where nothing did."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import reduce
from typing import Any

from pydantic import BaseModel, ConfigDict

from prompt_core.data.address import hide_access
from prompt_core.errors import PromptmillError
from prompt_core.task import TaskSpec


class Fingerprint(BaseModel):
    """What the files of a task held.

    Attributes:
        state: digest of what their file system says of them (size, times, ETag): equal states, equal content. Empty where it says too
            little to tell.
        content: SHA-256 of their bytes, 64 hexadecimal digits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: str
    content: str


def data_files(task: TaskSpec) -> dict[str, str]:
    """The addresses of all that a task's prompt is tuned on and judged by, by the field that names them."""
    named = {f"data.{field}": getattr(task.data, field) for field in ("path", "test_path", "unlabelled")}
    named["distill.context"] = task.distill.context if task.distill else None
    if task.prompt.start_from:
        named["prompt.start_from"] = f"{task.prompt.start_from}/digest"  # over its other files
    return {field: address for field, address in (named | task.schema_files).items() if address}


def fingerprint(task: TaskSpec, named: Mapping[str, str], known: Fingerprint | None = None) -> Fingerprint:
    """The fingerprint of files as they are now.

    Args:
        named: addresses, relative ones to the task file, by the field that names them.
        known: an earlier one; where the files' state is told and still the same, they are not read again.

    Raises:
        PromptmillError: a file is missing or its file system cannot be reached.
    """
    files = [(field, file) for field, name in named.items() for file in _files(task, field, name)]
    try:
        states = [(field, path, _state(system, path)) for field, (system, path) in files]
        told = "\n".join(" ".join(parts) for parts in states)
        state = hashlib.sha256(told.encode()).hexdigest() if all(state for _, _, state in states) else ""
        if known is not None and state and known.state == state:
            return known
        content = hashlib.sha256()
        for field, (system, path) in files:
            content.update(field.encode() + b"\0")
            with system.open(path, "rb") as stream:
                content.update(hashlib.file_digest(stream, "sha256").digest())
    except OSError as error:
        reason = reduce(hide_access, named.values(), str(error))
        raise PromptmillError(f"task {task.name}: {next(iter(named))}", f"cannot be read ({reason})", "Check the files.") from None
    return Fingerprint(state=state, content=content.hexdigest())


def _files(task: TaskSpec, field: str, named: str) -> list[tuple[Any, str]]:
    """(file system, path) of each file that a field names; a pattern names several."""
    import fsspec

    where = f"task {task.name}: {field}"
    try:
        system, path = fsspec.core.url_to_fs(task.locate(named))
        system.invalidate_cache()  # what an object store listed earlier is not how it is now
        paths = [path] if system.exists(path) else sorted(system.glob(path))
    except (OSError, ValueError, ImportError) as error:
        what = f'"{named}" cannot be reached ({error})'
        raise PromptmillError(where, hide_access(what, named), "Check the address.") from None
    if not paths:
        raise PromptmillError(where, f'there is no file "{hide_access(named, named)}"', "Check the path.")
    return [(system, path) for path in paths]


def _state(system: Any, path: str) -> str:
    """What changes with a file, as its file system says; empty where that says nothing of the kind."""
    if "https" not in system.protocol:
        return str(system.ukey(path))
    info = system.info(path)  # fsspec takes what is at a web address for unchanging: its `ukey` is the address
    told = [str(info[name]) for name in ("ETag", "Last-Modified") if name in info]
    return " ".join([*told, str(info.get("size"))]) if told else ""
