"""What is served: the aliases of published prompts, followed as they move. A request keeps the version that it began with."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from threading import Event, Thread

from prompt_core.artifact import TunedPrompt
from prompt_core.errors import PromptmillError, Unreachable, nearest
from prompt_core.ready import ReadyPrompt
from prompt_core.serving.engine import Engine
from prompt_core.serving.metrics import Metrics
from prompt_core.shelf import Models, Shelf, Shelved
from prompt_core.store import PromptStore
from prompt_core.store.moves import PRODUCTION
from prompt_core.store.records import PromptSummary

_LONGEST_WAIT = 60.0  # seconds before a version that could not be loaded is tried again
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
        self._waits: dict[tuple[str, int], tuple[float, float]] = {}  # of versions that could not be loaded: seconds, and until when
        self._stopping = Event()
        self._thread = Thread(target=self._follow, name="promptmill-catalogue", daemon=True)

    def start(self) -> None:
        """Load what the aliases stand for, then follow them.

        Raises:
            PromptmillError: a name is not published, nothing is, or nothing can be loaded; where names were given, one of these cannot.
        """
        failures = self.refresh()
        if failures and (self._names or not self._live):
            raise next(iter(failures.values()))
        _tell(failures)
        self._thread.start()

    def close(self) -> None:
        """Follow no more."""
        self._stopping.set()
        self._thread.join()

    def refresh(self) -> dict[str, Exception]:
        """Look at the store: versions that aliases stand for now are loaded first, then all these aliases move at once.

        An alias whose version cannot be loaded stays as it was, or is left out; the version is tried again later, ever less often.
        A store without any prompt is an error also later: prompts do not leave a store, so its folder or bucket has.

        Returns:
            Why what was tried could not be loaded, by `name@alias`.

        Raises:
            PromptmillError: the store cannot be read, holds no prompt, or lacks one of the given names.
        """
        known = {summary.name: summary for summary in self._store.list()}
        if not known:
            self._store.check_exists()
            raise PromptmillError(f"store {self._store.url}", "holds no prompt", "Publish one: `promptmill evaluate --publish`.")
        for name in self._names:
            if name not in known:
                raise PromptmillError(f"store {self._store.url}", f'there is no prompt "{name}"', nearest(name, known))
        served = self._names or tuple(known)
        self._shelf.pin((name, version) for name in served for version in known[name].aliases.values())
        summaries, live, failures, unloaded = {}, {}, dict[str, Exception](), 0
        for name in served:
            if before := self._summaries.get(name):
                for version in known[name].taken_back.keys() - before.taken_back.keys():
                    _log.warning("%s@%d was taken back: who asks for it by its number still gets it", name, version)
            aliases = {}
            for alias, version in known[name].aliases.items():
                address = f"{name}@{alias}"
                shelved = self._live.get(address)
                try:
                    shelved = self._taken(name, version) or shelved
                except Exception as error:  # whatever it is, other prompts must not pay for it
                    failures[address] = error
                if shelved:
                    live[address], aliases[alias] = shelved, shelved.version
                unloaded += shelved is None or shelved.version != version
            if aliases or not known[name].aliases:
                summaries[name] = known[name].model_copy(update={"aliases": aliases})
        self._summaries, self._live = summaries, live
        self._metrics.unloaded.set(unloaded)
        return failures

    def _taken(self, name: str, version: int) -> Shelved | None:
        """A version, or None where it is not time yet to try it again: a load stops all answers while it lasts, a failing one too."""
        wait, until = self._waits.get((name, version), (self._interval, 0.0))
        if time.monotonic() < until:
            return None
        try:
            shelved = self._shelf.take(name, version)
        except Exception:
            self._waits[name, version] = min(2 * wait, _LONGEST_WAIT), time.monotonic() + wait
            raise
        self._waits.pop((name, version), None)
        return shelved

    def find(self, given: str) -> Shelved:
        """What `name` (in production), `name@alias` or `name@3` stands for; loads a version that no alias has.

        Raises:
            PromptmillError: it is not served, or cannot be loaded; `Unreachable` where it is tried again.
        """
        name, _, version = given.partition("@")
        live = self._live.get(f"{name}@{version or PRODUCTION}")
        if live is not None:
            return live
        if name not in self._summaries:
            raise PromptmillError(f'model "{given}"', "is not served", nearest(name, self._summaries))
        known = {str(number): number for number in self._summaries[name].versions}  # what is loaded is there without the store
        shelved = self._taken(name, known[version]) if version in known else self._taken(*self._store.find(given))
        if shelved is None:
            raise Unreachable(f'model "{given}"', "could not be loaded a moment ago", "It is tried again; the first try said why.")
        return shelved

    def untuned(self, shelved: Shelved) -> ReadyPrompt:
        """The prompt's frozen model without it."""
        key = (shelved.name, shelved.version)
        if key not in self._untuned:
            tuned = shelved.tuned
            self._untuned[key] = self._engine.call(lambda: ReadyPrompt.untuned(tuned, self._models.of(tuned)))
        return self._untuned[key]

    def taken_back(self, shelved: Shelved) -> tuple[str, ...]:
        """The aliases that a version was taken off by a rollback or withdrawal; none where one stands for it now."""
        summary = self._summaries.get(shelved.name)
        return summary.taken_back.get(shelved.version, ()) if summary else ()

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
                _tell(self.refresh())
                self._metrics.reloads.labels("good").inc()
            except Exception as error:  # whatever it is, what is served now goes on
                self._metrics.reloads.labels("failed").inc()
                _log.warning("the store could not be read, what is served stays: %s", error)


def _tell(failures: Mapping[str, Exception]) -> None:
    for address, error in failures.items():
        _log.warning("%s cannot be loaded, what is served stays: %s", address, error)
