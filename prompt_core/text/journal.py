"""`Journal`: what was paid for once and is not paid for again, on disk, keyed by content: an interrupted search goes on from it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from prompt_core.text.budget import Clock


class Journal:
    """Answers by key, each a line of JSON that is on disk before it is used. A line that a crash cut short is left out.

    An answer remembers how many seconds the search had taken: a search that goes on and is given it again is as far.

    Args:
        path: the file, made with its folder when the first answer comes; None keeps the answers in memory.
        clock: of the search.
    """

    def __init__(self, path: Path | None, clock: Clock) -> None:
        self._path, self._clock = path, clock
        self._answers: dict[str, tuple[Any, float]] = _read(path) if path and path.exists() else {}

    def get(self, key: str) -> Any | None:
        """The answer to a key; None if there is none."""
        answer, seconds = self._answers.get(key, (None, 0.0))
        self._clock.at_least(seconds)
        return answer

    def put(self, answers: dict[str, Any]) -> None:
        """Keep answers of JSON types, all in one write."""
        seconds = round(self._clock.seconds, 3)
        self._answers |= {key: (answer, seconds) for key, answer in answers.items()}
        if self._path is None or not answers:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps([key, answer, seconds]) + "\n" for key, answer in answers.items())
        with self._path.open("a+b") as file:
            if file.tell() and file.seek(-1, os.SEEK_END) and file.read(1) != b"\n":
                text = "\n" + text  # the end of a line that a crash cut short
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())


def _read(path: Path) -> dict[str, tuple[Any, float]]:
    found = {}
    for line in path.read_bytes().splitlines():
        try:
            key, answer, seconds = json.loads(line)
            found[key] = (answer, float(seconds))
        except (ValueError, TypeError):
            continue
    return found
