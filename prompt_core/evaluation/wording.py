"""What a prompt in words says, and what of it changed."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import Literal

from prompt_core.artifact import TunedPrompt

Change = tuple[Literal["same", "added", "removed"], str]

_PIECES = re.compile(r"\s+|\w+|[^\w\s]")


def wording_changes(prompt: TunedPrompt, live: TunedPrompt | None) -> list[Change]:
    """The text of a prompt in pieces, word by word against the live one where both are words; empty for any other kind."""
    if not prompt.manifest.text:
        return []
    new = prompt.manifest.text.page(prompt.task)
    if live is None or not live.manifest.text:
        return [("same", new)]
    before, after = (_PIECES.findall(text) for text in (live.manifest.text.page(live.task), new))
    changes: list[Change] = []
    for operation, i, j, m, n in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if operation == "equal":
            changes.append(("same", "".join(after[m:n])))
            continue
        changes += [("removed", "".join(before[i:j]))] if j > i else []
        changes += [("added", "".join(after[m:n]))] if n > m else []
    return changes
