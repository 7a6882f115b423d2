"""What is new in Dagster's event log since a cursor: for counters and alerts, which look at all tasks and outlive every run."""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import dagster as dg

Fetch: TypeAlias = Callable[..., Any]  # DagsterInstance.fetch_materializations, fetch_run_status_changes and their like


class Cursor:
    """How far each kind of record has been read.

    Args:
        positions: as another cursor had them.
        at_once: records of one query. The position moves when whoever reads asks for more than these: by one, past nothing that was
            not dealt with.
    """

    def __init__(self, positions: dict[str, str] | None = None, at_once: int = 500) -> None:
        self.positions, self._at_once = dict(positions or {}), at_once

    def new(self, fetch: Fetch, what: dg.AssetKey | dg.DagsterEventType) -> Iterator[dg.EventLogRecord]:
        """Records of one kind that came after the last one which was given, oldest first."""
        more = True
        while more:
            found = fetch(what, limit=self._at_once, cursor=self.positions.get(_name(what)), ascending=True)
            more = found.has_more
            yield from found.records
            self.positions[_name(what)] = found.cursor

    def skip(self, fetch: Fetch, what: dg.AssetKey | dg.DagsterEventType) -> None:
        """Take the records of one kind that are there for read."""
        self.positions[_name(what)] = fetch(what, limit=1).cursor


def metadata_of(record: dg.EventLogRecord) -> dict[str, Any]:
    """The values beside a materialization."""
    done = record.asset_materialization
    return {name: entry.value for name, entry in done.metadata.items()} if done else {}


def _name(what: dg.AssetKey | dg.DagsterEventType) -> str:
    return what.to_user_string() if isinstance(what, dg.AssetKey) else what.value
