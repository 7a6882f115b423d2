"""`make demo`: what it prints, and how it ends when a prompt is not good enough."""

from pathlib import Path

import pytest
from deployment import a_deployment, write_task

from pipelines import demo
from pipelines.settings import Settings
from prompt_core import PromptStore


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A deployment that the environment points to."""
    settings = a_deployment(tmp_path / "d")
    monkeypatch.setenv("PROMPTMILL_TASKS", str(settings.tasks_dir))
    monkeypatch.setenv("PROMPTMILL_STORE", settings.store_url)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    return settings


def test_it_prints_the_evaluation_the_published_version_and_how_to_use_it(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    write_task(settings, "tiny")
    assert demo.main(["tiny"]) == 0
    printed = capsys.readouterr().out
    assert "tuned against" in printed and "gate passed" in printed
    digest = PromptStore(settings.store_url).record("tiny", "production").digest
    assert f"published: tiny@1 as production, digest {digest}" in printed
    assert f'  from prompt_core import PromptStore\n  PromptStore("{settings.store_url}").get("tiny").predict(["..."])' in printed


def test_a_failed_gate_ends_it_with_one_line_and_publishes_nothing(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    write_task(settings, "tiny", gate={"min_gain": 101})
    assert demo.main(["tiny"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tiny was not published: the gate did not pass: gain over label_names is too small")
    assert PromptStore(settings.store_url).list() == []


def test_a_broken_task_file_ends_it_with_its_line(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_task(settings, "tiny", objectiv="classify")
    assert demo.main(["tiny"]) == 1
    assert capsys.readouterr().err == f'tiny was not published: {path}: objectiv: unknown field. Did you mean "objective"?\n'
