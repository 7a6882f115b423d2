"""Every event and line of a run as one JSON object: the formatter that deploy/production/dagster.yaml names."""

import json
import logging
from importlib.metadata import version
from typing import Any

# Dagster puts what it knows of a line here; lines of other libraries have none.
_META = "dagster_meta"


class JsonLines(logging.Formatter):
    """One line per record: `time`, `level`, `message`, `version` of Promptmill, and of a run's lines `run`, `job`, `step`, `task`, `event`.

    A materialization adds `asset` and `digest`, a check `check` and `passed`: what one searches for when a prompt went live.
    """

    def __init__(self) -> None:
        super().__init__()
        self._version = version("promptmill")

    def format(self, record: logging.LogRecord) -> str:
        meta = getattr(record, _META, None)
        content: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "message": meta["orig_message"] if meta else record.getMessage(),
            "version": self._version,
        }
        if meta:
            partition = meta["job_tags"].get("dagster/partition")
            content |= {"run": meta["run_id"], "job": meta["job_name"], "step": meta["step_key"], "task": partition}
            if event := meta["dagster_event"]:
                content |= {"event": event.event_type_value} | _details(event)
        if record.exc_info:
            content["error"] = self.formatException(record.exc_info)
        return json.dumps({name: value for name, value in content.items() if value is not None}, ensure_ascii=False, default=str)


def _details(event: Any) -> dict[str, Any]:
    """What a search over logs wants of an event; the partition of a fleet's event is the task it speaks of."""
    if event.is_step_materialization:
        done = event.step_materialization_data.materialization
        digest = done.tags.get("dagster/data_version") if done.tags else None
        return {"asset": done.asset_key.to_user_string(), "digest": digest} | ({"task": done.partition} if done.partition else {})
    if event.event_type_value == "ASSET_CHECK_EVALUATION":
        found = event.asset_check_evaluation_data
        details = {"asset": found.asset_key.to_user_string(), "check": found.check_name, "passed": found.passed}
        return details | ({"task": found.partition} if found.partition else {})
    if event.is_step_failure:
        error = event.step_failure_data.error
        while error and error.cause:
            error = error.cause
        return {"error": error.message.strip()} if error else {}
    return {}
