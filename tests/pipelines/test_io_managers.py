"""Values of assets on disk: named after their content, found by partition, never half there."""

from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from pipelines.io_managers import ContentAddressed, FrameFiles, SplitsFolders
from prompt_core import PromptmillError
from prompt_core.data import Splits


def write(manager: ContentAddressed, value: object, partition: str = "t") -> None:
    manager.handle_output(dg.build_output_context(asset_key="examples", partition_key=partition, run_id="r"), value)


def read(manager: ContentAddressed, partition: str = "t") -> object:
    return manager.load_input(dg.build_input_context(asset_key="examples", partition_key=partition))[partition]


def objects(root: Path) -> list[Path]:
    return sorted((root / "objects" / "examples").iterdir())


def test_a_frame_comes_back(tmp_path: Path) -> None:
    frame, manager = pl.DataFrame({"text": ["a", "b"]}), FrameFiles(root=str(tmp_path))
    write(manager, frame)
    assert read(manager).equals(frame)


def test_splits_come_back(tmp_path: Path) -> None:
    sides = [pl.DataFrame({"text": [side]}) for side in ("train", "validation", "test")]
    manager = SplitsFolders(root=str(tmp_path))
    write(manager, Splits(*sides))
    assert read(manager).digest == Splits(*sides).digest


@pytest.mark.parametrize("partition", ["a/b", "../up", "..", "a b%2F"])
def test_no_partition_key_leaves_the_folder_or_meets_another(tmp_path: Path, partition: str) -> None:
    manager = FrameFiles(root=str(tmp_path / "root"))
    write(manager, pl.DataFrame({"text": ["other"]}), "a_b")
    write(manager, pl.DataFrame({"text": [partition]}), partition)
    assert read(manager, partition)["text"].to_list() == [partition]
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    assert len(list((tmp_path / "root" / "partitions" / "examples").iterdir())) == 2


def test_equal_values_share_one_object_and_a_new_value_leaves_the_old_one_alone(tmp_path: Path) -> None:
    manager = FrameFiles(root=str(tmp_path))
    write(manager, pl.DataFrame({"text": ["old"]}), "a")
    write(manager, pl.DataFrame({"text": ["old"]}), "b")
    assert len(objects(tmp_path)) == 1
    write(manager, pl.DataFrame({"text": ["new"]}), "b")
    assert len(objects(tmp_path)) == 2
    assert read(manager, "a")["text"].to_list() == ["old"]


def test_a_write_that_stops_half_way_leaves_the_value_before(tmp_path: Path) -> None:
    class FullDisk(FrameFiles):
        def save(self, value: pl.DataFrame, path: Path) -> None:
            path.write_bytes(b"PAR1")
            raise OSError("no space left on device")

    write(FrameFiles(root=str(tmp_path)), pl.DataFrame({"text": ["old"]}))
    with pytest.raises(dg.RetryRequested) as asked:
        write(FullDisk(root=str(tmp_path)), pl.DataFrame({"text": ["new"]}))
    assert asked.value.max_retries == 2 and str(asked.value.__cause__) == "no space left on device"
    assert read(FrameFiles(root=str(tmp_path)))["text"].to_list() == ["old"]
    assert len(objects(tmp_path)) == 1


def test_what_was_made_of_the_same_inputs_is_found_again_until_it_is_damaged(tmp_path: Path) -> None:
    frame, manager = pl.DataFrame({"text": ["a"]}), FrameFiles(root=str(tmp_path))
    assert manager.remembered("examples", "some inputs") is None
    manager.remember("examples", "some inputs", frame)
    assert manager.remembered("examples", "some inputs").equals(frame)
    assert manager.remembered("examples", "other inputs") is None
    objects(tmp_path)[0].write_bytes(b"")
    assert manager.remembered("examples", "some inputs") is None


def test_a_damaged_object_is_named_and_written_again_by_the_next_run(tmp_path: Path) -> None:
    frame, manager = pl.DataFrame({"text": ["a"]}), FrameFiles(root=str(tmp_path))
    write(manager, frame)
    objects(tmp_path)[0].write_bytes(b"")
    with pytest.raises(PromptmillError, match="cannot be read"):
        read(manager)
    write(manager, frame)
    assert read(manager).equals(frame)
    assert len(objects(tmp_path)) == 1


def test_a_value_that_was_never_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(PromptmillError, match=r"examples\[t\]: has no value. Materialize it first."):
        read(FrameFiles(root=str(tmp_path)))
