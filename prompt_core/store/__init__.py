"""Published prompts: immutable versions and movable aliases on any file system that can create a file only where none is."""

from prompt_core.store.contents import Publishable
from prompt_core.store.records import AliasMove, PromptSummary, VersionRecord
from prompt_core.store.store import PromptStore

__all__ = ["AliasMove", "PromptStore", "PromptSummary", "Publishable", "VersionRecord"]
