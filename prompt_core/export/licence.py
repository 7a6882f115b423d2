"""Under which licence a frozen model is, as far as its own files say."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from gguf import GGUFReader

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone.locate import Located, locate
from prompt_core.errors import PromptmillError

_FRONT_MATTER = re.compile(r"\A---\n(.*?)^---$", re.MULTILINE | re.DOTALL)
_LICENCE = re.compile(r"^license:\s*[\"']?([\w.\-]+)", re.MULTILINE)


def base_of(prompt: TunedPrompt) -> Located:
    """Where a prompt's base is on this machine.

    Raises:
        PromptmillError: it is not there any more.
    """
    spec = prompt.task.backbone
    return locate(spec.model_copy(update={"name": prompt.origin or spec.name}), Path())


def licence_of(prompt: TunedPrompt) -> str | None:
    """The licence that the base's model card or GGUF file names; None where they name none or are not on this machine."""
    try:
        base = base_of(prompt)
    except PromptmillError:
        return None
    if base.weights is not None:
        return _licence_in_gguf(base.weights)
    card = Path(base.source) / "README.md"
    head = _FRONT_MATTER.match(card.read_text(encoding="utf-8")) if card.is_file() else None
    named = _LICENCE.search(head[1]) if head else None
    return named[1] if named else None


@lru_cache
def _licence_in_gguf(file: Path) -> str | None:
    """Read once: a GGUF file's fields hold its whole vocabulary, seconds of work."""
    field = GGUFReader(file).fields.get("general.license")
    return str(field.contents()) if field else None
