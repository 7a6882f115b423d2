"""The version of each prompt that is live, for Prometheus: read from the store, which a rollback by hand moves too."""

import logging
import time
from collections.abc import Iterable
from threading import Lock, Thread

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from prompt_core import PromptmillError, PromptStore
from prompt_core.store.moves import PRODUCTION

_FRESH = 30.0  # seconds between two looks at the store
_WAIT = 3.0  # seconds of a scrape; Prometheus gives it ten
_log = logging.getLogger(__name__)


class LiveVersions(Collector):
    """The live versions of a store. No scrape fails or waits for long because of it: while it cannot be read there are none, and while
    it is slow those of the last look."""

    def __init__(self, store: PromptStore) -> None:
        self._store, self._lock = store, Lock()
        self._versions: dict[str, int] = {}
        self._look: Thread | None = None
        self._due = 0.0

    def collect(self) -> Iterable[Metric]:
        """Look again where it is time: called by every scrape."""
        with self._lock:
            if not (self._look and self._look.is_alive()) and time.monotonic() >= self._due:
                self._look = Thread(target=self._read, daemon=True)
                self._look.start()
            if self._look:
                self._look.join(_WAIT)
        metric = GaugeMetricFamily("promptmill_live_version", "The version that is live.", labels=["task"])
        for name, version in self._versions.items():
            metric.add_metric([name], version)
        yield metric

    def _read(self) -> None:
        try:
            self._versions = {found.name: found.aliases[PRODUCTION] for found in self._store.list() if PRODUCTION in found.aliases}
        except PromptmillError as error:
            self._versions = {}
            _log.warning("The live versions are not known: %s", error)
        self._due = time.monotonic() + _FRESH
