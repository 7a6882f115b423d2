"""What is new in Dagster's event log since a cursor: for counters and alerts, which look at all tasks and outlive every run."""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import dagster as dg

Fetch: TypeAlias = Callable[..., Any]  # DagsterInstance.fetch_materializations, fetch_run_status_changes and their like
_AT_ONCE = 500  # records of one query


class Cursor:
    """How far each kind of record has been read."""

    def __init__(self, positions: dict[str, str] | None = None) -> None:
        self.positions = dict(positions or {})

    def new(self, fetch: Fetch, what: dg.AssetKey | dg.DagsterEventType) -> Iterator[dg.EventLogRecord]:
        """Records of one kind that came after the last one which was given, oldest first."""
        name = what.to_user_string() if isinstance(what, dg.AssetKey) else what.value
        more = True
        while more:
            found = fetch(what, limit=_AT_ONCE, cursor=self.positions.get(name), ascending=True)
            more = found.has_more
            yield from found.records
            self.positions[name] = found.cursor


def metadata_of(record: dg.EventLogRecord) -> dict[str, Any]:
    """The values beside a materialization."""
    done = record.asset_materialization
    return {name: entry.value for name, entry in done.metadata.items()} if done else {}
