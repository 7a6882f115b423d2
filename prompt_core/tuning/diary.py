"""What a search has found so far, on disk: one JSON file from which an interrupted search goes on to the same result."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from prompt_core.durable import write_whole
from prompt_core.trials import Trial
from prompt_core.tuning.parallel import is_writer

_log = logging.getLogger("promptmill")


class Diary(BaseModel):
    """The state of a search between two rungs.

    Attributes:
        trials: those of the waves that are through.
        wave: those of the wave that runs.
        measured: rungs of that wave that are measured.
        prompt_steps, tokens: what the finished waves cost; `tokens` also the looks of the wave that runs.
        seconds: time spent, by all processes that worked on it one after another.
        ended: why no further wave is to come; None while there may be one.
    """

    model_config = ConfigDict(extra="forbid")

    trials: list[Trial] = []
    wave: list[Trial] = []
    measured: int = 0
    prompt_steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    ended: Literal["trials", "time", "space"] | None = None

    @classmethod
    def read(cls, path: Path | None) -> Diary:
        """What `write` wrote; an empty one where there is nothing, or nothing that can be read."""
        if path is None or not path.exists():
            return cls()
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            _log.warning("search %s: cannot be read (%s). It starts anew.", path, str(error).splitlines()[0])
            return cls()

    def write(self, path: Path | None) -> None:
        """Put it on disk, whole or not at all. A full disk costs a warning, not the search."""
        if path is None or not is_writer():
            return
        try:
            write_whole(path, self.model_dump_json(indent=1).encode())
        except OSError as error:
            _log.warning("search %s: cannot be written (%s). The search goes on without it.", path, error.strerror)
