"""Old values leave the disk, what tasks have now stays, and a run beside it loses nothing."""

import os
import random
import threading
import time
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from deployment import a_deployment, write_task
from pydantic import ValidationError

import pipelines.prune
from pipelines.definitions import build_defs
from pipelines.io_managers import FrameFiles, Texts
from pipelines.prune import Pruned, prune
from prompt_core import PromptmillError

DAY = 86_400


def write(manager: FrameFiles | Texts, value: object, partition: str = "t") -> None:
    manager.handle_output(dg.build_output_context(asset_key="examples", partition_key=partition, run_id="r"), value)


def read(manager: FrameFiles | Texts, partition: str = "t") -> object:
    return manager.load_input(dg.build_input_context(asset_key="examples", partition_key=partition))[partition]


def age(root: Path, days: float) -> None:
    """Make everything so old."""
    for path in root.rglob("*"):
        os.utime(path, (time.time() - days * DAY,) * 2)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_values_that_no_task_has_go_when_they_are_old(tmp_path: Path) -> None:
    manager = Texts(root=str(tmp_path), suffix=".html")
    for value, partition in (("first", "a"), ("first", "b"), ("second", "b"), ("third", "c"), ("fourth", "c")):
        write(manager, value, partition)
    assert prune(tmp_path, days=1) == Pruned(0, 0, 0)
    age(tmp_path, 100)
    assert prune(tmp_path, days=101) == Pruned(0, 0, 0)
    assert prune(tmp_path, days=99) == Pruned(1, 0, len("third"))
    assert [read(manager, partition) for partition in "abc"] == ["first", "second", "fourth"]
    assert len(names(tmp_path / "objects" / "examples")) == 3


def test_a_value_is_old_from_when_another_took_its_place(tmp_path: Path) -> None:
    manager = Texts(root=str(tmp_path))
    write(manager, "in use for long")
    age(tmp_path, 100)
    write(manager, "new")
    assert prune(tmp_path, days=99) == Pruned(0, 0, 0)
    age(tmp_path, 100)
    assert prune(tmp_path, days=99).objects == 1


def test_what_was_made_of_inputs_is_remembered_while_a_task_has_it(tmp_path: Path) -> None:
    manager = Texts(root=str(tmp_path))
    for made_of, value in (("inputs of now", "now"), ("inputs of then", "then"), ("inputs that never came again", "never")):
        manager.remember("examples", made_of, value)
    write(manager, "then")
    write(manager, "now")
    age(tmp_path, 100)
    manager.remember("examples", "the same, asked for yesterday", "then")
    removed = prune(tmp_path, days=99)
    assert (removed.objects, removed.others) == (1, 2)
    assert manager.remembered("examples", "inputs of now") == "now" and read(manager) == "now"
    assert manager.remembered("examples", "the same, asked for yesterday") == "then"
    assert manager.remembered("examples", "inputs of then") is None
    assert manager.remembered("examples", "inputs that never came again") is None


def test_what_killed_runs_left_goes_too_and_work_in_progress_stays(tmp_path: Path) -> None:
    manager = Texts(root=str(tmp_path))
    write(manager, "value")
    left = ["checkpoints/a.safetensors", "checkpoints/ladder-text-0/manifest.json", "fleets/run/tuned_prompt/a.txt"]
    left += ["objects/examples/.new-1/content", "objects/examples/.old-1"]
    for name in left:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("12345")
    assert prune(tmp_path, days=1) == Pruned(0, 0, 0)
    age(tmp_path, 100)
    (tmp_path / "checkpoints/b.safetensors").write_text("in progress")
    assert prune(tmp_path, days=99) == Pruned(0, 5, 5 * len(left))
    assert names(tmp_path / "checkpoints") == ["b.safetensors"] and names(tmp_path / "fleets") == []
    assert read(manager) == "value" and len(names(tmp_path / "objects/examples")) == 1


def test_a_value_that_is_pruned_before_its_note_is_written_is_written_again(tmp_path: Path) -> None:
    class Interrupted(Texts):
        def _is_intact(self, path: Path) -> bool:
            found = super()._is_intact(path)
            age(tmp_path, 2)
            assert prune(tmp_path, days=1).objects == 1
            return found

    write(Texts(root=str(tmp_path)), "back again")
    write(Texts(root=str(tmp_path)), "in between")
    write(Interrupted(root=str(tmp_path)), "back again")
    assert read(Texts(root=str(tmp_path))) == "back again"


def test_a_value_that_gets_a_note_while_it_is_pruned_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manager, notes = Texts(root=str(tmp_path)), [tmp_path / "partitions" / "examples" / "t.digest"]
    write(manager, "back again")
    noted = notes[0].read_text()
    write(manager, "in between")
    age(tmp_path, 2)
    taken_away = pipelines.prune._set_aside

    def set_aside(path: Path) -> Path | None:
        notes[0].write_text(noted)  # a run that had looked before, and has not looked again
        return taken_away(path)

    monkeypatch.setattr(pipelines.prune, "_set_aside", set_aside)
    assert prune(tmp_path, days=1).objects == 0
    assert read(manager) == "back again"


@pytest.mark.hardness
@pytest.mark.slow
def test_runs_that_come_back_to_old_values_while_these_are_pruned_have_them(tmp_path: Path) -> None:
    manager, chance = FrameFiles(root=str(tmp_path)), random.Random(0)
    frames = [pl.DataFrame({"text": [str(number)]}) for number in range(40)]
    for frame in frames:
        write(manager, frame)
    pruned = 0
    for _ in range(25):
        frame = chance.choice(frames)
        age(tmp_path, 2)
        counted: list[Pruned] = []
        pruning = threading.Thread(target=lambda counted=counted: counted.append(prune(tmp_path, days=1)))
        pruning.start()
        time.sleep(chance.uniform(0, 0.004))
        write(manager, frame)
        pruning.join()
        assert frame.equals(read(manager))
        pruned += counted[0].objects
        for other in chance.sample(frames, 8):
            write(manager, other, "another")
    assert pruned > 25
    assert not [name for name in names(tmp_path / "objects" / "examples") if name.startswith(".")]


def test_it_is_a_job_of_the_deployment(tmp_path: Path) -> None:
    settings = a_deployment(tmp_path)
    write_task(settings, "a")
    manager = Texts(root=str(settings.storage_dir))
    write(manager, "old", "a")
    write(manager, "new", "a")
    write(manager, "of a task whose file is gone", "b/c")
    age(settings.storage_dir, 40)
    write(manager, "of one that went yesterday", "d")
    job = build_defs(settings).resolve_job_def("prune_values")
    for days, values in ((90, 0), (30, 2)):
        result = job.execute_in_process({"ops": {"remove_old_values": {"config": {"days": days}}}})
        (output,) = [event for event in result.all_events if event.is_successful_output]
        assert output.step_output_data.metadata["values"].value == values
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        job.execute_in_process({"ops": {"remove_old_values": {"config": {"days": 0}}}})
    assert (read(manager, "a"), read(manager, "d")) == ("new", "of one that went yesterday")
    for partition in ("b/c", "unknown"):
        with pytest.raises(PromptmillError, match="has no value"):
            read(manager, partition)
    (settings.tasks_dir / "a.yaml").unlink()
    age(settings.storage_dir, 40)
    job.execute_in_process({"ops": {"remove_old_values": {"config": {"days": 30}}}})
    assert read(manager, "a") == "new"  # no task file at all: the folder is not mounted
