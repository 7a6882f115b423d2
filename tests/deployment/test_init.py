"""`promptmill init`: a folder with everything in it, or the folder as it was and one line that says why not."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from dagster._core.secrets.env_file import get_env_var_dict

from prompt_core import load_task
from prompt_core.cli import main
from prompt_core.data import prepare


def init(folder: Path) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["init", str(folder)])
    return result.exit_code, result.output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert init(tmp_path / "new" / "place") == (0, f"{tmp_path}/new/place is ready:\n  cd {tmp_path}/new/place\n  dagster dev\n")
    return tmp_path / "new" / "place"


def test_it_has_a_task_whose_data_is_there_settings_and_the_code_location(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {".env", ".gitignore", "README.md", "dagster.yaml", "data", "pipelines", "tasks", "workspace.yaml"}
    splits, _ = prepare(load_task(folder / "tasks" / "caretaker.yaml"))
    assert len(splits.train) == 50 and len(splits.test) == 20
    assert yaml.safe_load((folder / "dagster.yaml").read_text())["telemetry"] == {"enabled": False}
    assert (folder / ".env").read_text() == f"DAGSTER_HOME='{folder}'\nPROMPTMILL_AUTOMATION=on\n"
    assert not list(folder.rglob("__pycache__"))


def test_its_own_code_location_loads_with_its_own_task(folder: Path) -> None:
    code = "from pipelines.definitions import defs; from pipelines import settings; print(settings.REPOSITORY, defs.schedules[0].name)"
    environment = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == f"{folder} retune_at_0_3_any_any_1\n"


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert init(tmp_path) == (2, f"Error: {tmp_path}: is not empty. Name a folder that does not exist yet or has nothing in it.\n")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert init(tmp_path / "notes.txt")[1].startswith(f"Error: {tmp_path}/notes.txt: is a file.")


def test_dagster_finds_the_folder_whatever_its_name_or_it_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "desk #2" / "Ann's \\$HOME"
    assert init(folder) == (0, f"{folder} is ready:\n  cd {shlex.quote(str(folder))}\n  dagster dev\n")
    assert get_env_var_dict(str(folder))["DAGSTER_HOME"] == str(folder)
    for name, sign in (("${HOME}", "${"), ("desk?", "?"), ("desk%20two", "%")):
        what = f'has "{sign}" in its path, which Dagster reads as something else'
        assert init(tmp_path / name) == (2, f"Error: {tmp_path / name}: {what}. Name another place.\n")


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert init(tmp_path / "empty")[0] == 0
    assert (tmp_path / "empty" / "workspace.yaml").is_file() and [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_place_that_cannot_be_written_is_one_line_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    status, line = init(tmp_path / "file" / "below")
    assert status == 2 and line == f"Error: {tmp_path}/file/below: cannot be written (File exists). Name another place.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
