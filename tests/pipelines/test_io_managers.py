"""Values of assets on disk: named after their content, found by partition, never half there."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from helpers import a_task

from pipelines.io_managers import ContenderFiles, ContentAddressed, EvaluationFiles, FrameFiles, SplitsFolders, Texts
from prompt_core import PromptmillError
from prompt_core.data import Splits
from prompt_core.evaluation import About, Contender, Evaluation, Rows, evaluate_contenders


def write(manager: ContentAddressed, value: object, partition: str = "t") -> None:
    manager.handle_output(dg.build_output_context(asset_key="examples", partition_key=partition, run_id="r"), value)


def read(manager: ContentAddressed, partition: str = "t") -> object:
    return manager.load_input(dg.build_input_context(asset_key="examples", partition_key=partition))[partition]


def objects(root: Path) -> list[Path]:
    return sorted((root / "objects" / "examples").iterdir())


def pointer(root: Path) -> Path:
    return root / "partitions" / "examples" / "t.digest"


def rejected() -> Evaluation:
    """The evaluation of a prompt that is right as often as what it has to beat."""
    contenders = [Contender("label_names", "untuned", ["late"] * 4), Contender("tuned", "tuned", ["late"] * 4)]
    return evaluate_contenders(a_task(), Rows([{"text": "?"}] * 4, ["late", "lost"] * 2), contenders, About("f" * 64))


def replaced(old: str, new: str) -> Callable[[Path], object]:
    """Puts another text in the place of one in a file."""
    return lambda path: path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


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


FRAME = pl.DataFrame({"text": ["a", "b"], "label": ["x", "y"]})
CHANGES = {
    "row": (FrameFiles, FRAME, lambda path: FRAME.head(1).write_parquet(path)),
    "null": (FrameFiles, FRAME, lambda path: pl.DataFrame({"text": ["a", None], "label": ["x", "x"]}).write_parquet(path)),
    "side": (SplitsFolders, Splits(FRAME, FRAME, FRAME), lambda path: FRAME.head(1).write_parquet(path / "test.parquet")),
    "text": (Texts, '{"version": 1}', replaced("1", "2")),
    "prediction": (ContenderFiles, [Contender("a", "untuned", ["late"])], replaced("late", "lost")),
    "verdict": (EvaluationFiles, rejected(), replaced('"passed": false', '"passed": true')),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_value_that_was_changed_on_the_disk_is_refused_until_it_is_written_again(tmp_path: Path, change: str) -> None:
    kind, value, change_it = CHANGES[change]
    manager = kind(root=str(tmp_path))
    write(manager, value)
    digest = pointer(tmp_path).read_text(encoding="ascii")
    assert manager.digest(read(manager)) == digest
    change_it(objects(tmp_path)[0])
    with pytest.raises(PromptmillError, match=rf"{digest}: was changed.*Materialize the asset again\.$"):
        read(manager)
    write(manager, value)
    assert manager.digest(read(manager)) == digest


@pytest.mark.parametrize("left", [b"", b"\0" * 64, b"../examples", b"\xff"], ids=["empty", "zeros", "a path", "no text"])
def test_a_pointer_that_a_power_cut_left_without_its_digest_names_no_value(tmp_path: Path, left: bytes) -> None:
    manager = FrameFiles(root=str(tmp_path))
    write(manager, FRAME)
    write(manager, FRAME.head(1), "another")
    pointer(tmp_path).write_bytes(left)
    with pytest.raises(PromptmillError, match=r"t\.digest: holds .* where a digest belongs\. Materialize the asset again\."):
        read(manager)
    write(manager, FRAME)
    assert read(manager).equals(FRAME)


def test_an_evaluation_of_a_version_before_a_field_was_added_keeps_its_digest(tmp_path: Path) -> None:
    content = json.loads(rejected().model_dump_json(exclude={"cost", "round_trips"}))
    seconds = content.pop("seconds")
    digest = hashlib.sha256(json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()).hexdigest()
    path = EvaluationFiles(root=str(tmp_path)).place(dg.AssetKey("examples"), digest)
    for place, text in ((path, json.dumps(content | {"seconds": seconds})), (pointer(tmp_path), digest)):
        place.parent.mkdir(parents=True)
        place.write_text(text, encoding="utf-8")
    assert read(EvaluationFiles(root=str(tmp_path))).verdict == rejected().verdict


def test_value_and_pointer_are_on_the_disk_before_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []

    def sync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink().relative_to(tmp_path.resolve())))

    monkeypatch.setattr(os, "fsync", sync)
    write(SplitsFolders(root=str(tmp_path)), Splits(FRAME, FRAME, FRAME))
    before, beside, after = (synced.index(name) for name in ("objects/examples", "partitions", "partitions/examples"))
    sides = {Path(name).name for name in synced[:before]}
    assert {"train.parquet", "validation.parquet", "test.parquet", "content"} <= sides
    assert before < beside < after and any(name.startswith("partitions/examples/.t.digest.") for name in synced[beside:after])
