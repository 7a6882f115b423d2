"""The sensor `new_data`: what it remembers, what it looks at, and that no task keeps it from the others."""

import json
import os
from pathlib import Path

import dagster as dg
import pytest
from deployment import a_deployment, write_task
from ticks import launched, tick
from web_server import web_server

from pipelines import sensors
from pipelines.partitions import find_task_files, register
from pipelines.settings import Settings
from prompt_core.data import data_files, fingerprint
from prompt_core.task_file import load_task


def test_data_that_changed_while_their_task_was_retired_are_tuned_on_when_it_comes_back(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    path = write_task(settings, "a")
    write_task(settings, "b")
    data, content = settings.tasks_dir / "messages.csv", path.read_text()
    with dg.DagsterInstance.ephemeral() as instance:
        register(instance, find_task_files(settings.tasks_dir))
        for key in "ab":
            instance.report_runless_asset_event(dg.AssetMaterialization("examples", partition=key))
        cursor = tick(settings, instance, "new_data").cursor
        path.unlink()
        tick(settings, instance, "task_files")
        gone = tick(settings, instance, "new_data", cursor)
        assert instance.get_dynamic_partitions("tasks") == ["b"]
        path.write_text(content)
        tick(settings, instance, "task_files")
        same = tick(settings, instance, "new_data", gone.cursor)
        assert launched(same) == []
        path.unlink()
        tick(settings, instance, "task_files")
        gone = tick(settings, instance, "new_data", same.cursor)
        path.write_text(content)
        data.write_text(data.read_text() + "when does my parcel come,late\n")
        tick(settings, instance, "task_files")
        back = tick(settings, instance, "new_data", gone.cursor)
    assert isinstance(back, dg.SensorResult) and back.run_requests
    assert [request.tags["dagster/asset_partition_range_end"] for request in back.run_requests] == ["a"]


def test_of_tasks_that_are_gone_the_last_thousand_are_remembered(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    write_task(settings, "a")
    files = {f"gone {number}": {"state": "", "content": "0" * 64} for number in range(1500)}
    with dg.DagsterInstance.ephemeral() as instance:
        register(instance, find_task_files(settings.tasks_dir))
        found = tick(settings, instance, "new_data", json.dumps({"look": 1, "files": files}))
    assert list(json.loads(str(found.cursor))["files"]) == [*list(files)[500:], "a"]


def test_a_fault_of_any_kind_keeps_no_other_task_from_being_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs", reason="not here: pip install 'promptmill[s3]'")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    settings = a_deployment(tmp_path)
    write_task(settings, "good")
    write_task(settings, "odd", data={"path": "s3://bucket/rows.csv", "target": "label"})
    with dg.DagsterInstance.ephemeral() as instance:
        register(instance, find_task_files(settings.tasks_dir))
        assert launched(tick(settings, instance, "new_data")) == ["good"]


def test_a_tick_that_runs_out_of_time_keeps_what_it_saw_and_the_next_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(sensors, "_LOOK_SECONDS", 1)  # of a look at one task: 0.45 at least
    settings, tasks = a_deployment(tmp_path / "d"), [f"t{number:02}" for number in range(18)]
    with web_server(tmp_path / "served", seconds=0.15) as address, dg.DagsterInstance.ephemeral() as instance:
        (tmp_path / "served" / "rows.csv").write_text("text,label\na,b\n")
        for task in tasks:
            write_task(settings, task, data={"path": f"{address}/rows.csv", "target": "label"})
        register(instance, find_task_files(settings.tasks_dir))
        cursor, found, ticks = None, list[str](), 0
        while ticks < 50:
            result = tick(settings, instance, "new_data", cursor)
            assert isinstance(result, dg.SensorResult)
            cursor = result.cursor
            found += [task for request in result.run_requests or () for task in tasks_of(request, tasks)]
            ticks += 1
            if len(json.loads(str(cursor))["files"]) == len(tasks):
                break
    assert sorted(found) == tasks
    assert ticks > 1


@pytest.mark.parametrize("withheld", [(), ("Last-Modified",)])
def test_data_that_changed_at_a_web_address_are_tuned_on(tmp_path: Path, withheld: tuple[str, ...]) -> None:
    pytest.importorskip("aiohttp")
    settings, data = a_deployment(tmp_path / "d"), tmp_path / "served" / "rows.csv"
    with web_server(tmp_path / "served", withheld=withheld) as address, dg.DagsterInstance.ephemeral() as instance:
        data.write_text("text,label\na,b\n")
        write_task(settings, "a", data={"path": f"{address}/rows.csv", "target": "label"})
        cursor = launched_once(settings, instance, "a")
        data.write_text("text,label\na,c\n")
        os.utime(data, (2e9, 2e9))
        assert launched(tick(settings, instance, "new_data", cursor)) == ["a"]


def test_a_web_address_that_tells_when_it_changed_is_not_read_again(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    with web_server(tmp_path / "served") as address:
        (tmp_path / "served" / "rows.csv").write_text("text,label\na,b\n")
        settings = a_deployment(tmp_path / "d")
        task = load_task(write_task(settings, "a", data={"path": f"{address}/rows.csv", "target": "label"}))
        first = fingerprint(task, data_files(task))
        assert fingerprint(task, data_files(task), first) is first


def test_a_task_of_its_own_questions_runs_once_by_itself_and_again_when_its_context_changed(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    distill, policy = {"questions": 8, "context": "policy.md"}, settings.tasks_dir / "policy.md"
    write_task(settings, "a", backbone="smollm2", objective="distill", labels={}, template="{{ question }}", distill=distill, data={})
    policy.write_text("Returns are free.")
    with dg.DagsterInstance.ephemeral() as instance:
        cursor = launched_once(settings, instance, "a")
        policy.write_text("Returns are not free.")
        assert launched(tick(settings, instance, "new_data", cursor)) == ["a"]


def test_schemas_inputs_without_labels_and_the_prompt_that_a_task_starts_from_are_looked_at_too(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    (settings.tasks_dir / "record.json").write_text('{"type": "object"}')
    path = write_task(
        settings,
        "a",
        backbone="smollm2",
        objective="extract",
        labels={},
        extract={"schema": "record.json"},
        prompt={"kind": "deep", "start": "prompt", "start_from": "earlier"},
    )
    expected = {"data.path": "messages.csv", "prompt.start_from": "earlier/digest", "extract.schema": "record.json"}
    assert data_files(load_task(path)) == expected
    more = {"path": "messages.csv", "target": "label", "unlabelled": "more.csv"}
    path = write_task(settings, "b", data=more, tune={"self_training": 1})
    assert data_files(load_task(path)) == {"data.path": "messages.csv", "data.unlabelled": "more.csv"}


def launched_once(settings: Settings, instance: dg.DagsterInstance, task: str) -> str | None:
    """See a new task launched by its first look and left alone by the second; gives the cursor after that."""
    register(instance, find_task_files(settings.tasks_dir))
    first = tick(settings, instance, "new_data")
    assert launched(first) == [task]
    same = tick(settings, instance, "new_data", first.cursor)
    assert launched(same) == []
    return same.cursor


def tasks_of(request: dg.RunRequest, tasks: list[str]) -> list[str]:
    first, last = (request.tags.get(f"dagster/asset_partition_range_{end}", request.partition_key) for end in ("start", "end"))
    return [task for task in tasks if str(first) <= task <= str(last)]
