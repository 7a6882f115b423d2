"""Where a deployment keeps its things."""

from pathlib import Path

import pytest

from pipelines.settings import REPOSITORY, Settings
from prompt_core import PromptmillError


def test_without_an_environment_everything_lies_in_the_repository() -> None:
    settings = Settings.from_environment({})
    assert settings.tasks_dir == REPOSITORY / "tasks"
    assert settings.store_url == str(REPOSITORY / ".promptmill" / "store")
    assert settings.storage_dir == REPOSITORY / ".promptmill" / "assets"


def test_values_of_assets_lie_beside_the_run_history(tmp_path: Path) -> None:
    assert Settings.from_environment({"DAGSTER_HOME": str(tmp_path)}).storage_dir == tmp_path / "assets"


@pytest.mark.parametrize("name", ["Berlin", "Europe", "../Europe/Berlin", "/etc/localtime", "CEST"])
def test_a_time_zone_that_is_none_is_named(name: str) -> None:
    with pytest.raises(PromptmillError, match=rf'PROMPTMILL_TIMEZONE: "{name}" is no time zone. Name one as IANA does'):
        Settings.from_environment({"PROMPTMILL_TIMEZONE": name})


def test_a_folder_of_tasks_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PromptmillError, match=r"PROMPTMILL_TASKS: .* is no folder"):
        Settings.from_environment({"PROMPTMILL_TASKS": str(tmp_path / "tsaks")})
