"""Who has failed in a run of many tasks, so that its later steps leave them out."""

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, unquote

import dagster as dg


class Ledger(dg.ConfigurableResource):
    """A file for each failed task of each asset and run: fleets/<run>/<asset>/<task>.txt, which says why.

    A run that goes on from a failed one has its notes: they stand under the run that was first.
    """

    root: str

    def note(self, run: dg.DagsterRun, asset: str, reasons: Mapping[str, str]) -> None:
        """The tasks that failed at an asset, in place of what an earlier attempt noted."""
        folder = self._folder(run, asset)
        for key in self.failed(run, asset).keys() - reasons:
            self._path(folder, key).unlink(missing_ok=True)
        for key, reason in reasons.items():
            folder.mkdir(parents=True, exist_ok=True)
            beside = folder / f"{run.run_id}.new"
            beside.write_text(reason, encoding="utf-8")
            beside.replace(self._path(folder, key))

    def failed(self, run: dg.DagsterRun, asset: str) -> dict[str, str]:
        """Reasons by task."""
        return {unquote(path.stem): path.read_text(encoding="utf-8") for path in sorted(self._folder(run, asset).glob("*.txt"))}

    def _folder(self, run: dg.DagsterRun, asset: str) -> Path:
        return Path(self.root) / "fleets" / (run.root_run_id or run.run_id) / asset

    def _path(self, folder: Path, key: str) -> Path:
        return folder / f"{quote(key, safe='')}.txt"
