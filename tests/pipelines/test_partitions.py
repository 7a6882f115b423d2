"""Task files as partitions, and what a broken one does: nothing, until it is asked for."""

import re
from pathlib import Path

import dagster as dg
import pytest
import yaml
from deployment import a_deployment, failure_of, run_retune, write_task

from pipelines.definitions import build_defs
from pipelines.partitions import find_task_files
from prompt_core import PromptmillError


def test_a_partition_is_named_after_its_task_not_its_file(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    write_task(settings, "returns").rename(settings.tasks_dir / "x.yaml")
    assert [file.key for file in find_task_files(settings.tasks_dir)] == ["returns"]


def test_a_byte_order_mark_is_no_part_of_a_task_file_or_its_schema(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    parts = {"objective": "extract", "labels": {}, "extract": {"schema": "form.json"}}
    path = write_task(settings, "returns", **parts).rename(settings.tasks_dir / "x.yaml")
    path.write_text("\ufeffname: returns\n" + path.read_text(encoding="utf-8").replace("name: returns\n", "", 1), encoding="utf-8")
    (settings.tasks_dir / "form.json").write_text('\ufeff{"type": "object", "properties": {"thing": {"type": "string"}}}', encoding="utf-8")
    (file,) = find_task_files(settings.tasks_dir)
    assert file.key == "returns" == file.load().name


def test_a_broken_file_is_a_partition_that_fails_alone_with_one_line(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    write_task(settings, "good")
    write_task(settings, "broken", objectiv="classify")
    assert [file.key for file in find_task_files(settings.tasks_dir)] == ["broken", "good"]
    with dg.DagsterInstance.ephemeral() as instance:
        result = run_retune(settings, instance, "broken")
    assert not result.success
    assert failure_of(result).endswith('tasks/broken.yaml: objectiv: unknown field. Did you mean "objective"?')


def test_a_missing_data_file_fails_with_one_line(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    write_task(settings, "lost", data={"path": "nowhere.csv", "target": "label"})
    with dg.DagsterInstance.ephemeral() as instance:
        result = run_retune(settings, instance, "lost")
    assert "nowhere.csv" in failure_of(result)
    assert "\n" not in failure_of(result)


def test_two_files_with_one_name_are_two_partitions_of_which_the_second_fails(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    write_task(settings, "a").rename(settings.tasks_dir / "first.yaml")
    write_task(settings, "a").rename(settings.tasks_dir / "second.yaml")
    first, second = find_task_files(settings.tasks_dir)
    assert (first.key, second.key) == ("a", "second")
    assert first.load().name == "a"
    with pytest.raises(PromptmillError, match='"a" is not this partition\'s name, "second"'):
        second.load()


def test_a_copy_beside_a_task_file_does_not_take_its_partition(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    for name in ("a-new", "a (copy)", ".a"):  # all of them stand before a.yaml
        write_task(settings, "a").rename(settings.tasks_dir / f"{name}.yaml")
    own = write_task(settings, "a")
    found = {file.path: file.key for file in find_task_files(settings.tasks_dir)}
    assert found.pop(own) == "a"
    assert sorted(found.values()) == [".a", "a (copy)", "a-new"]
    own.write_text("objectiv: classify")  # a broken one is told, not replaced
    assert {file.path: file.key for file in find_task_files(settings.tasks_dir)}[own] == "a"


@pytest.mark.parametrize("schedule", ["every monday", "\uff10 3 * * 1"])
def test_a_schedule_that_is_no_cron_line_breaks_its_task_only(tmp_path: Path, schedule: str) -> None:
    settings = a_deployment(tmp_path)
    write_task(settings, "weekly", schedule=schedule)
    (file,) = find_task_files(settings.tasks_dir)
    assert file.schedule is None
    dg.Definitions.validate_loadable(build_defs(settings))
    with pytest.raises(PromptmillError, match=f'schedule: "{re.escape(schedule)}" is not a cron line'):
        file.load()


@pytest.mark.parametrize(
    "said", ['"schedule": "0 3 * * 1"', "schedule: >-\n  0 3 * * 1", "schedule:\n  0 3 * * 1", "{rest}, schedule: 0 3 * * 1"]
)
def test_a_schedule_is_found_however_yaml_lets_it_be_written(tmp_path: Path, said: str) -> None:
    settings = a_deployment(tmp_path)
    path = write_task(settings, "a")
    rest = yaml.safe_load(path.read_text())
    del rest["schedule"]
    flow = yaml.safe_dump(rest, default_flow_style=True, width=1000).strip().removesuffix("}")
    block = yaml.safe_dump(rest)
    path.write_text(said.replace("{rest}", flow) + "}" if "{rest}" in said else f"{block}{said}\n")
    (file,) = find_task_files(settings.tasks_dir)
    assert (file.key, file.schedule) == ("a", "0 3 * * 1") == (file.load().name, file.load().schedule)


def test_a_file_that_could_not_be_read_for_a_moment_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = a_deployment(tmp_path)
    write_task(settings, "returns").rename(settings.tasks_dir / "x.yaml")

    def stale(path: Path, encoding: str) -> str:
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as moment:
        moment.setattr(Path, "read_text", stale)
        assert [(file.key, file.schedule) for file in find_task_files(settings.tasks_dir)] == [("x", None)]
    assert [(file.key, file.schedule) for file in find_task_files(settings.tasks_dir)] == [("returns", "0 3 * * 1")]
