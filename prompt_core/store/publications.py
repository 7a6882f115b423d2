"""The rules by which a prompt becomes a version: what is refused, and what is one already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prompt_core.errors import PromptmillError
from prompt_core.store.moves import check_reason
from prompt_core.store.records import State


def same_content(state: State, digest: str, good: bool) -> int | None:
    """The version with this content; one that did not pass is not the same as one that did."""
    found = [number for number, content in state.versions.items() if content.digest == digest and (content.passed or not good)]
    return max(found, default=None)


def check_forced(name: str, evaluation: Mapping[str, Any], force: bool, why: str) -> None:
    """Refuse to publish what did not pass, unless somebody says why it must be."""
    if not force:
        what = f"did not pass its evaluation (verdict: {evaluation.get('verdict')})"
        raise PromptmillError(f"prompt {name}", what, "Only a prompt that passed is published; force it with a reason.")
    check_reason(f"prompt {name}", "forced", why)
