"""`Journal`: what was paid for once and is not paid for again, on disk, keyed by content: an interrupted search goes on from it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Journal:
    """Answers by key, each a line of JSON that is on disk before it is used. A line that a crash cut short is left out.

    Args:
        path: the file, made with its folder when the first answer comes; None keeps the answers in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._answers: dict[str, Any] = dict(_lines(path)) if path and path.exists() else {}

    def get(self, key: str) -> Any | None:
        """The answer to a key; None if there is none."""
        return self._answers.get(key)

    def put(self, answers: dict[str, Any]) -> None:
        """Keep answers of JSON types, all in one write."""
        self._answers |= answers
        if self._path is None or not answers:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps([key, answer], ensure_ascii=False) + "\n" for key, answer in answers.items())
        with self._path.open("a+b") as file:
            if file.tell() and file.seek(-1, os.SEEK_END) and file.read(1) != b"\n":
                text = "\n" + text  # the end of a line that a crash cut short
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())


def _lines(path: Path) -> list[tuple[str, Any]]:
    found = []
    for line in path.read_bytes().splitlines():
        try:
            key, answer = json.loads(line)
        except (ValueError, TypeError):
            continue
        found.append((key, answer))
    return found
