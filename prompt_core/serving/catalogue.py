"""What is served: the aliases of published prompts, followed as they move. A request keeps the version that it began with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from threading import Event, Thread

from prompt_core.artifact import TunedPrompt
from prompt_core.errors import PromptmillError, nearest
from prompt_core.ready import ReadyPrompt
from prompt_core.serving.engine import Engine
from prompt_core.serving.metrics import Metrics
from prompt_core.shelf import Models, Shelf, Shelved
from prompt_core.store import PromptStore
from prompt_core.store.moves import PRODUCTION
from prompt_core.store.records import PromptSummary

_log = logging.getLogger(__name__)


class Catalogue:
    """The prompts of a store, ready; models are loaded and prompts read on the engine's thread.

    Args:
        store: where prompts are published.
        names: what is served; empty for everything in the store.
        engine: started.
        interval: seconds between looks at the store.
        metrics: where looks are counted.
    """

    def __init__(self, store: PromptStore, names: Sequence[str], engine: Engine, interval: float, metrics: Metrics) -> None:
        self._store, self._names, self._engine, self._interval, self._metrics = store, tuple(names), engine, interval, metrics
        self._models = Models()
        self._shelf = Shelf(store, self._ready)
        self._untuned: dict[tuple[str, int], ReadyPrompt] = {}
        self._summaries: dict[str, PromptSummary] = {}
        self._live: dict[str, Shelved] = {}
        self._stopping = Event()
        self._thread = Thread(target=self._follow, name="promptmill-catalogue", daemon=True)

    def start(self) -> None:
        """Load what the aliases stand for, then follow them.

        Raises:
            PromptmillError: a name is not published, nothing is, or a prompt or its model cannot be loaded.
        """
        self.refresh()
        self._thread.start()

    def close(self) -> None:
        """Follow no more."""
        self._stopping.set()
        self._thread.join()

    def refresh(self) -> None:
        """Look at the store: versions that aliases stand for now are loaded first, then all aliases move at once.

        A store without any prompt is an error also later: prompts do not leave a store, so its folder or bucket has.
        """
        known = {summary.name: summary for summary in self._store.list()}
        for name in self._names:
            if name not in known:
                raise PromptmillError(f"store {self._store.url}", f'there is no prompt "{name}"', nearest(name, known))
        if not known:
            raise PromptmillError(f"store {self._store.url}", "holds no prompt", "Publish one: `promptmill evaluate --publish`.")
        summaries = {name: known[name] for name in self._names or known}
        live = {}
        for name, summary in summaries.items():
            for alias, version in summary.aliases.items():
                live[f"{name}@{alias}"] = self._shelf.take(name, version)
        self._summaries, self._live = summaries, live

    def find(self, given: str) -> Shelved:
        """What `name` (in production), `name@alias` or `name@3` stands for; loads a version that no alias has.

        Raises:
            PromptmillError: it is not served.
        """
        name, _, version = given.partition("@")
        live = self._live.get(f"{name}@{version or PRODUCTION}")
        if live is not None:
            return live
        if name not in self._summaries:
            raise PromptmillError(f'model "{given}"', "is not served", nearest(name, self._summaries))
        return self._shelf.find(given)

    def untuned(self, shelved: Shelved) -> ReadyPrompt:
        """The prompt's frozen model without it."""
        key = (shelved.name, shelved.version)
        if key not in self._untuned:
            tuned = shelved.tuned
            self._untuned[key] = self._engine.call(lambda: ReadyPrompt.untuned(tuned, self._models.of(tuned)))
        return self._untuned[key]

    @property
    def addresses(self) -> dict[str, Shelved]:
        """Everything with an alias: `name@alias`, and `name` for what is in production."""
        short = {given.removesuffix(f"@{PRODUCTION}"): shelved for given, shelved in self._live.items()}
        return dict(sorted((short | self._live).items()))

    @property
    def summaries(self) -> list[PromptSummary]:
        """The prompts with their versions and aliases."""
        return list(self._summaries.values())

    def _ready(self, tuned: TunedPrompt) -> ReadyPrompt:
        return self._engine.call(lambda: self._models.ready(tuned))

    def _follow(self) -> None:
        while not self._stopping.wait(self._interval):
            try:
                self.refresh()
                self._metrics.reloads.labels("good").inc()
            except Exception as error:  # whatever it is, what is served now goes on
                self._metrics.reloads.labels("failed").inc()
                _log.warning("the store could not be read, what is served stays: %s", error)
