"""`make demo`: what it prints, and how it ends when a prompt is not good enough."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from deployment import a_deployment, write_task

from pipelines.settings import REPOSITORY, Settings
from prompt_core import PromptStore

# A process of its own: Dagster redirects the descriptors of standard output and error inside a step.
_DEMO = "import sys; from pipelines import demo; sys.exit(demo.main(['tiny']))"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return a_deployment(tmp_path / "d")


def run_demo(settings: Settings) -> subprocess.CompletedProcess[str]:
    """The demo with the deployment's one task."""
    places = {
        "PROMPTMILL_TASKS": str(settings.tasks_dir),
        "PROMPTMILL_STORE": settings.store_url,
        "DAGSTER_HOME": str(settings.tasks_dir.parent / "home"),
    }
    command = [sys.executable, "-c", _DEMO]
    return subprocess.run(command, cwd=REPOSITORY, env={**os.environ, **places}, capture_output=True, text=True, check=False, timeout=300)


def test_it_prints_the_evaluation_the_published_version_and_how_to_use_it(settings: Settings) -> None:
    write_task(settings, "tiny")
    run = run_demo(settings)
    assert run.returncode == 0, run.stderr
    assert "tuned against" in run.stdout and "gate passed" in run.stdout
    digest = PromptStore(settings.store_url).record("tiny", "production").digest
    assert f"published: tiny@1 as production, digest {digest}" in run.stdout
    assert f'  from prompt_core import PromptStore\n  PromptStore("{settings.store_url}").get("tiny").predict(["..."])' in run.stdout


@pytest.mark.slow
def test_a_second_run_gives_the_same_digest_and_no_new_version(settings: Settings) -> None:
    write_task(settings, "tiny")
    first, second = ([line for line in run_demo(settings).stdout.splitlines() if line.startswith("published")] for _ in range(2))
    assert len(first) == 1 and first == second
    assert PromptStore(settings.store_url).list()[0].versions == (1,)


@pytest.mark.slow
def test_a_failed_gate_ends_it_with_one_line_and_publishes_nothing(settings: Settings) -> None:
    write_task(settings, "tiny", gate={"min_gain": 101})
    run = run_demo(settings)
    assert run.returncode == 1
    line = run.stderr.splitlines()[-1]
    assert line.startswith("tiny was not published: the gate did not pass: gain over label_names is too small")
    assert PromptStore(settings.store_url).list() == []


def test_a_broken_task_file_ends_it_with_its_line(settings: Settings) -> None:
    path = write_task(settings, "tiny", objectiv="classify")
    run = run_demo(settings)
    assert run.returncode == 1
    assert run.stderr == f'tiny was not published: {path}: objectiv: unknown field. Did you mean "objective"?\n'
