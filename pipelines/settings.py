"""Where this deployment keeps its things. The environment is read here and nowhere else."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict

from prompt_core import PromptmillError

REPOSITORY = Path(__file__).resolve().parents[1]
ALERT_URL = "PROMPTMILL_ALERT_URL"


class Settings(BaseModel):
    """Places of a deployment.

    Attributes:
        tasks_dir: folder with one YAML file per task.
        store_url: where prompts are published, see `prompt_core.PromptStore`.
        storage_dir: where the values of assets are kept between steps.
        automation: whether schedules and sensors run as soon as they are deployed; else people switch them on in the UI.
        timezone: IANA name of the zone in which the cron lines of task files tell the hour.
        torchrun: arguments of `torchrun`, where a prompt is tuned by several processes.
        alerts: whether failed gates and runs are told to a webhook, whose address stays in the environment.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks_dir: Path
    store_url: str
    storage_dir: Path
    automation: bool = False
    timezone: str = "UTC"
    torchrun: str = ""
    alerts: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """PROMPTMILL_TASKS, PROMPTMILL_STORE and PROMPTMILL_STORAGE; what is not set lies in the repository.

        Without PROMPTMILL_STORAGE the values lie beside the run history in DAGSTER_HOME, since one is of no use without the other.

        PROMPTMILL_TORCHRUN and PROMPTMILL_ALERT_URL are empty where nothing is said.

        PROMPTMILL_AUTOMATION is `on` in production; `off`, which it is where nothing is said, leaves what launches runs to people.

        PROMPTMILL_TIMEZONE is UTC where nothing is said.

        Raises:
            PromptmillError: the folder of task files does not exist, PROMPTMILL_AUTOMATION is another word, or there is no such time zone.
        """
        state = REPOSITORY / ".promptmill"
        home = Path(environment.get("DAGSTER_HOME") or state)
        tasks_dir = Path(environment.get("PROMPTMILL_TASKS") or REPOSITORY / "tasks").resolve()
        if not tasks_dir.is_dir():
            raise PromptmillError("PROMPTMILL_TASKS", f'"{tasks_dir}" is no folder', "Name the folder that holds the task files.")
        automation = environment.get("PROMPTMILL_AUTOMATION") or "off"
        if automation not in ("on", "off"):
            raise PromptmillError("PROMPTMILL_AUTOMATION", f'"{automation}" is neither on nor off', "Set one of them.")
        timezone = environment.get("PROMPTMILL_TIMEZONE") or "UTC"
        try:
            ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):  # not there; no name of one; a folder of such
            fix = "Name one as IANA does, such as Europe/Berlin."
            raise PromptmillError("PROMPTMILL_TIMEZONE", f'"{timezone}" is no time zone', fix) from None
        return cls(
            automation=automation == "on",
            timezone=timezone,
            tasks_dir=tasks_dir,
            store_url=environment.get("PROMPTMILL_STORE") or str(state / "store"),
            storage_dir=Path(environment.get("PROMPTMILL_STORAGE") or home / "assets").resolve(),
            torchrun=environment.get("PROMPTMILL_TORCHRUN") or "",
            alerts=bool(environment.get(ALERT_URL)),
        )
