"""Published prompts made ready on their frozen models: each version is loaded once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Lock

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.manifest import BackboneIdentity
from prompt_core.prediction import backbone_of
from prompt_core.ready import ReadyPrompt
from prompt_core.store import PromptStore

_MOST = 256  # versions that are kept beside the pinned ones


@dataclass(frozen=True, eq=False)
class Shelved:
    """A version of a published prompt, ready to answer.

    Attributes:
        name, version, digest: which one.
        tuned: as it was published.
        ready: on its frozen model.
    """

    name: str
    version: int
    digest: str
    tuned: TunedPrompt
    ready: ReadyPrompt

    @property
    def address(self) -> str:
        """`name@3`."""
        return f"{self.name}@{self.version}"


class Shelf:
    """What a store holds, ready on demand. May be used by several threads.

    Args:
        store: where prompts are published.
        make: what makes a prompt ready; by default on the frozen model that its manifest names, loaded once.
    """

    def __init__(self, store: PromptStore, make: Callable[[TunedPrompt], ReadyPrompt] | None = None) -> None:
        self.store, self._make = store, make or Models().ready
        self._kept: dict[tuple[str, int], Shelved] = {}
        self._pinned: frozenset[tuple[str, int]] = frozenset()
        self._lock = Lock()

    def find(self, given: str) -> Shelved:
        """The version that `name` (in production), `name@3` or `name@alias` means now.

        Raises:
            PromptmillError: there is no such prompt, version or alias, or its frozen model cannot be loaded.
        """
        return self.take(*self.store.find(given))

    def pin(self, versions: Iterable[tuple[str, int]]) -> None:
        """Keep these versions however many others are taken; those that were pinned before no longer."""
        self._pinned = frozenset(versions)

    def take(self, name: str, version: int) -> Shelved:
        """A version by its number.

        Raises:
            PromptmillError: as `find`.
        """
        with self._lock:
            found = self._kept.pop((name, version), None)
            if found is None:
                tuned = self.store.get(name, version)
                found = Shelved(name, version, tuned.digest, tuned, self._make(tuned))
            self._kept[name, version] = found  # the last one used stands last
            for key in [key for key in self._kept if key not in self._pinned][:-_MOST]:
                del self._kept[key]
            return found


class Models:
    """The frozen models of prompts, each loaded once."""

    def __init__(self) -> None:
        self._loaded: dict[BackboneIdentity, Backbone] = {}

    def of(self, tuned: TunedPrompt) -> Backbone:
        """The model that a prompt was tuned on.

        Raises:
            PromptmillError: it cannot be loaded.
        """
        identity = tuned.manifest.backbone
        if identity not in self._loaded:
            self._loaded[identity] = backbone_of(tuned)
        return self._loaded[identity]

    def ready(self, tuned: TunedPrompt) -> ReadyPrompt:
        """A prompt on its model."""
        return ReadyPrompt.of(tuned, self.of(tuned))
