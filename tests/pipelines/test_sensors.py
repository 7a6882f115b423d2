"""What is noticed: task files that come and go, and data that changed."""

import os
from pathlib import Path

import dagster as dg
import fsspec
import polars as pl
import pytest
from deployment import THINGS, a_deployment, failure_of, run_retune, write_task
from ticks import launched, tick

from pipelines.automation import runs_for
from pipelines.definitions import build_defs
from pipelines.partitions import find_task_files, register
from prompt_core import PromptmillError
from prompt_core.data import data_files, fingerprint
from prompt_core.task_file import load_task


def test_a_file_that_appears_becomes_a_partition_and_one_that_vanishes_retires_its_own(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    path = write_task(settings, "a")
    with dg.DagsterInstance.ephemeral() as instance:
        tick(settings, instance, "task_files")
        write_task(settings, "b")
        tick(settings, instance, "task_files")
        assert instance.get_dynamic_partitions("tasks") == ["a", "b"]
        path.unlink()
        tick(settings, instance, "task_files")
        assert instance.get_dynamic_partitions("tasks") == ["b"]
        assert isinstance(tick(settings, instance, "task_files"), dg.SkipReason)


@pytest.mark.parametrize("retired", ["a", "b", "d"])
def test_a_task_that_is_retired_while_a_run_waits_fails_alone_in_it(tmp_path: Path, retired: str) -> None:
    settings = a_deployment(tmp_path)
    paths = {key: write_task(settings, key) for key in "abcd"}
    selection = [dg.AssetKey("examples"), dg.AssetKey("splits")]
    job = build_defs(settings).resolve_job_def("retune")
    with dg.DagsterInstance.ephemeral() as instance:
        keys = register(instance, find_task_files(settings.tasks_dir))
        (request,) = runs_for(keys, keys, "test")
        waiting = instance.create_run_for_job(job, tags=request.tags)
        paths[retired].unlink()
        assert isinstance(tick(settings, instance, "task_files"), dg.SkipReason)
        assert instance.get_dynamic_partitions("tasks") == keys
        result = job.execute_in_process(instance=instance, tags=request.tags, asset_selection=selection, raise_on_error=False)
        assert failure_of(result).startswith(f"1 of 4 tasks failed, the others are done.\n{retired}: ")
        assert instance.get_materialized_partitions(dg.AssetKey("splits")) == set("abcd") - {retired}
        instance.report_run_canceled(waiting)
        tick(settings, instance, "task_files")
        assert instance.get_dynamic_partitions("tasks") == [key for key in keys if key != retired]


def test_a_partition_stays_while_a_run_over_it_is_to_be_tried_again(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    paths = {key: write_task(settings, key) for key in "abc"}
    with dg.DagsterInstance.ephemeral() as instance:
        keys = register(instance, find_task_files(settings.tasks_dir))
        (request,) = runs_for(["a", "b"], keys, "test")
        tags = {**request.tags, "dagster/will_retry": "true"}
        lost = instance.create_run_for_job(build_defs(settings).resolve_job_def("retune"), tags=tags, status=dg.DagsterRunStatus.FAILURE)
        for key in "bc":
            paths[key].unlink()
        tick(settings, instance, "task_files")
        assert instance.get_dynamic_partitions("tasks") == ["a", "b"]
        instance.add_run_tags(lost.run_id, {"dagster/auto_retry_run_id": "another"})
        tick(settings, instance, "task_files")
        assert instance.get_dynamic_partitions("tasks") == ["a"]


def test_a_task_that_never_ran_is_tuned_once_and_again_when_its_data_changed(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    write_task(settings, "a")
    data = settings.tasks_dir / "messages.csv"
    with dg.DagsterInstance.ephemeral() as instance:
        register(instance, find_task_files(settings.tasks_dir))
        first = tick(settings, instance, "new_data")
        assert launched(first) == ["a"]
        os.utime(data, (1, 1))
        touched = tick(settings, instance, "new_data", first.cursor)
        assert launched(touched) == []
        data.write_text(data.read_text() + "when does my parcel come,late\n")
        changed = tick(settings, instance, "new_data", touched.cursor)
        assert launched(changed) == ["a"]
        assert launched(tick(settings, instance, "new_data", changed.cursor)) == []


def test_data_that_come_back_to_what_they_were_are_tuned_on_again(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    write_task(settings, "a")
    data = settings.tasks_dir / "messages.csv"
    contents = [data.read_text(), data.read_text() + "when does my parcel come,late\n"]
    keys: list[str | None] = []
    with dg.DagsterInstance.ephemeral() as instance:
        register(instance, find_task_files(settings.tasks_dir))
        cursor = None
        for turn in range(5):
            data.write_text(contents[turn % 2])
            found = tick(settings, instance, "new_data", cursor)
            assert launched(found) == ["a"]
            assert isinstance(found, dg.SensorResult) and found.run_requests
            keys.append(found.run_requests[0].run_key)
            repeated = tick(settings, instance, "new_data", cursor)
            assert isinstance(repeated, dg.SensorResult) and repeated.run_requests
            assert repeated.run_requests[0].run_key == keys[-1]  # Dagster launches a key once
            cursor = found.cursor
    assert len(set(keys)) == 5


def test_a_task_file_that_is_away_for_a_tick_is_compared_with_what_was_seen_last(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    path = write_task(settings, "a")
    data, content = settings.tasks_dir / "messages.csv", path.read_text()
    with dg.DagsterInstance.ephemeral() as instance:
        register(instance, find_task_files(settings.tasks_dir))
        cursor = tick(settings, instance, "new_data").cursor
        path.unlink()
        away = tick(settings, instance, "task_files")
        assert isinstance(away, dg.SkipReason) and "is it mounted?" in str(away.skip_message)
        assert instance.get_dynamic_partitions("tasks") == ["a"]
        gone = tick(settings, instance, "new_data", cursor)
        assert launched(gone) == []
        path.write_text(content)
        data.write_text(data.read_text() + "when does my parcel come,late\n")
        assert launched(tick(settings, instance, "new_data", gone.cursor)) == ["a"]


def test_a_task_that_ran_already_is_only_noted_at_first(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    write_task(settings, "a")
    with dg.DagsterInstance.ephemeral() as instance:
        register(instance, find_task_files(settings.tasks_dir))
        instance.report_runless_asset_event(dg.AssetMaterialization("examples", partition="a"))
        assert launched(tick(settings, instance, "new_data")) == []


def test_a_broken_task_and_lost_data_keep_no_other_task_from_being_looked_at(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    write_task(settings, "broken", objectiv="classify")
    write_task(settings, "good")
    write_task(settings, "lost", data={"path": "nowhere.csv", "target": "label"})
    with dg.DagsterInstance.ephemeral() as instance:
        register(instance, find_task_files(settings.tasks_dir))
        found = tick(settings, instance, "new_data")
    assert launched(found) == ["good"]


def test_data_at_any_address_has_a_fingerprint_of_its_content(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/desk/rows.csv", b"text,label\na,b\n")
    task = load_task(write_task(a_deployment(tmp_path), "a", data={"path": "memory://desk/rows.csv", "target": "label"}))
    first = fingerprint(task, data_files(task))
    assert fingerprint(task, data_files(task), first) is first
    memory.pipe("/desk/rows.csv", b"text,label\na,c\n")
    assert fingerprint(task, data_files(task), first).content != first.content
    memory.rm("/desk/rows.csv")
    with pytest.raises(PromptmillError, match=r'task a: data.path: there is no file "memory://desk/rows.csv"'):
        fingerprint(task, data_files(task), first)


def test_inputs_that_drifted_from_what_the_live_prompt_was_tuned_on_launch_one_run(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    write_task(settings, "a", drift={"inputs": "inputs.csv"})
    inputs = settings.tasks_dir / "inputs.csv"
    same = [f"where is my {thing}" if number % 2 else f"the {thing} came broken" for number, thing in enumerate(THINGS)]
    with dg.DagsterInstance.ephemeral() as instance:
        register(instance, find_task_files(settings.tasks_dir))
        pl.DataFrame({"text": ["can you please tell me how I may become one of your drivers in spring"] * 60}).write_csv(inputs)
        early = tick(settings, instance, "drifted_inputs")
        assert launched(early) == []  # there is nothing live to compare with
        assert run_retune(settings, instance, "a").success
        assert launched(tick(settings, instance, "drifted_inputs", early.cursor)) == ["a"]  # the same inputs, looked at again
        pl.DataFrame({"text": same}).write_csv(inputs)
        stable = tick(settings, instance, "drifted_inputs", early.cursor)
        assert launched(stable) == []
        pl.DataFrame({"text": ["can you please tell me how I may become one of your drivers in spring"] * 60}).write_csv(inputs)
        drifted = tick(settings, instance, "drifted_inputs", stable.cursor)
        assert launched(drifted) == ["a"]
        assert launched(tick(settings, instance, "drifted_inputs", drifted.cursor)) == []
