"""Where this deployment keeps its things. The environment is read here and nowhere else."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self

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
        torchrun: arguments of `torchrun`, where a prompt is tuned by several processes.
        alerts: whether failed gates and runs are told to a webhook, whose address stays in the environment.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks_dir: Path
    store_url: str
    storage_dir: Path
    automation: bool = False
    torchrun: str = ""
    alerts: bool = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """PROMPTMILL_TASKS, PROMPTMILL_STORE and PROMPTMILL_STORAGE; what is not set lies in the repository.

        Without PROMPTMILL_STORAGE the values lie beside the run history in DAGSTER_HOME, since one is of no use without the other.

        PROMPTMILL_TORCHRUN and PROMPTMILL_ALERT_URL are empty where nothing is said.

        PROMPTMILL_AUTOMATION is `on` in production; `off`, which it is where nothing is said, leaves what launches runs to people.

        Raises:
            PromptmillError: the folder of task files does not exist, or PROMPTMILL_AUTOMATION is another word.
        """
        state = REPOSITORY / ".promptmill"
        home = Path(environment.get("DAGSTER_HOME") or state)
        tasks_dir = Path(environment.get("PROMPTMILL_TASKS") or REPOSITORY / "tasks").resolve()
        if not tasks_dir.is_dir():
            raise PromptmillError("PROMPTMILL_TASKS", f'"{tasks_dir}" is no folder', "Name the folder that holds the task files.")
        automation = environment.get("PROMPTMILL_AUTOMATION") or "off"
        if automation not in ("on", "off"):
            raise PromptmillError("PROMPTMILL_AUTOMATION", f'"{automation}" is neither on nor off', "Set one of them.")
        return cls(
            automation=automation == "on",
            tasks_dir=tasks_dir,
            store_url=environment.get("PROMPTMILL_STORE") or str(state / "store"),
            storage_dir=Path(environment.get("PROMPTMILL_STORAGE") or home / "assets").resolve(),
            torchrun=environment.get("PROMPTMILL_TORCHRUN") or "",
            alerts=bool(environment.get(ALERT_URL)),
        )
