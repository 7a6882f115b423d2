"""Who has failed in a run of many tasks, so that its later steps leave them out."""

import json
from collections.abc import Mapping
from pathlib import Path

import dagster as dg

from prompt_core.durable import write_whole


class Ledger(dg.ConfigurableResource):
    """A file for each asset of a run, fleets/<run>/<asset>.json: why, by task. A file's name would not hold every task's.

    A run that goes on from a failed one has its notes: they stand under the run that was first.
    """

    root: str

    def note(self, run: dg.DagsterRun, asset: str, reasons: Mapping[str, str]) -> None:
        """The tasks that failed at an asset, in place of what an earlier attempt noted."""
        path = self._path(run, asset)
        if reasons or path.exists():
            write_whole(path, json.dumps(dict(reasons)).encode())

    def failed(self, run: dg.DagsterRun, asset: str) -> dict[str, str]:
        """Reasons by task."""
        path = self._path(run, asset)
        return json.loads(path.read_bytes()) if path.exists() else {}

    def _path(self, run: dg.DagsterRun, asset: str) -> Path:
        return Path(self.root) / "fleets" / (run.root_run_id or run.run_id) / f"{asset}.json"
