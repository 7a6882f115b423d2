from __future__ import annotations

import tempfile
from pathlib import Path

import polars as pl
import pytest
from data_builders import SHARED, a_task, needs_shared, rows, with_ids
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_core.data import Splits, find_leakage, outside_test, prepare, split
from prompt_core.errors import PromptmillError

SIDES = ("train", "validation", "test")
MANY = rows(*((f"message number {i} about something", "ab"[i % 2]) for i in range(400)))
small_sets = st.sets(st.integers(0, 10**6), min_size=60, max_size=90)


def side_of(splits: Splits) -> dict[str, str]:
    return {text: side for side in SIDES for text in getattr(splits, side)["text"]}


def generated(numbers: set[int]) -> pl.DataFrame:
    return with_ids(rows(*((f"message {i}", "reply") for i in numbers)))


@settings(max_examples=30, deadline=None)
@given(small_sets, small_sets)
def test_a_row_never_changes_side_when_data_grows(now: set[int], later: set[int]) -> None:
    task = a_task(objective="generate")
    before, after = side_of(split(generated(now), task)), side_of(split(generated(now | later), task))
    assert before.items() <= after.items()


@settings(max_examples=30, deadline=None)
@given(small_sets, st.randoms(use_true_random=False))
def test_the_order_of_the_file_changes_nothing(numbers: set[int], random: object) -> None:
    task, frame = a_task(objective="generate"), generated(numbers)
    a, b = split(frame, task), split(frame.sample(fraction=1.0, shuffle=True, seed=random.randrange(2**32)), task)  # type: ignore[attr-defined]
    assert a.digest == b.digest
    assert all(getattr(a, side).equals(getattr(b, side)) for side in SIDES)


@settings(max_examples=30, deadline=None)
@given(small_sets)
def test_inputs_outside_test_are_those_that_no_split_would_test_on(numbers: set[int]) -> None:
    task, frame = a_task(objective="generate"), generated(numbers)
    inputs = pl.concat([frame, frame]).select("text", other=pl.lit("x"))
    found, splits = outside_test(inputs, task), split(frame, task)
    assert found["_id"].to_list() == sorted([*splits.train["_id"], *splits.validation["_id"]])
    assert found.columns == ["_id", "text"]
    spelled = pl.concat([inputs.select("text"), frame.select(pl.col("text").str.replace(" ", "  "))])
    assert outside_test(spelled, task).equals(outside_test(spelled[::-1], task))


def test_inputs_outside_a_test_file_are_those_that_it_does_not_hold(tmp_path: Path) -> None:
    MANY.head(100).write_csv(tmp_path / "test.csv")
    task = a_task(tmp_path, test_path="test.csv")
    spaced = MANY.with_columns(pl.col("text").str.replace(" ", "  "))  # another spelling of the same text
    assert len(outside_test(MANY, task)) == len(outside_test(spaced, task)) == 300
    assert not set(outside_test(MANY, task)["text"]) & set(MANY.head(100)["text"])


def test_every_row_is_on_one_side_sorted_by_id_in_about_the_asked_shares() -> None:
    splits = split(with_ids(MANY), a_task(test=0.3, validation=0.2))
    assert len(side_of(splits)) == sum(len(getattr(splits, side)) for side in SIDES) == 400
    assert all(getattr(splits, side)["_id"].is_sorted() for side in SIDES)
    assert 90 < len(splits.test) < 150
    assert 55 < len(splits.validation) < 105


def test_references_of_one_text_stay_together() -> None:
    frame = with_ids(pl.concat([MANY, MANY.with_columns(label=pl.lit("other"))]))
    splits = split(frame, a_task(objective="generate"))
    ids = [set(getattr(splits, side)["_id"]) for side in SIDES]
    assert not (ids[0] & ids[1] or ids[0] & ids[2] or ids[1] & ids[2])


def test_the_digest_depends_on_targets_and_sides() -> None:
    frame = with_ids(MANY)
    splits = split(frame, a_task())
    other = split(frame.with_columns(label=pl.col("label").replace({"a": "c"})), a_task())
    swapped = Splits(splits.train, splits.test, splits.validation)
    assert len({splits.digest, other.digest, swapped.digest}) == 3
    assert len(splits.digest) == 64


def test_a_test_frame_is_the_test_side_and_the_rest_is_divided_in_two() -> None:
    test = with_ids(rows(("unseen one", "a"), ("unseen two", "b")))
    splits = split(with_ids(MANY), a_task(validation=0.2), test)
    assert set(splits.test["text"]) == {"unseen one", "unseen two"}
    assert len(splits.train) + len(splits.validation) == 400
    assert abs(len(splits.validation) - 80) < 25


def test_a_validation_share_of_zero_leaves_that_side_empty() -> None:
    assert split(with_ids(MANY), a_task(validation=0.0)).validation.is_empty()


def test_shares_that_leave_nothing_to_train_on_are_refused() -> None:
    with pytest.raises(PromptmillError, match=r"test and validation take 1.1 of the rows, which leaves nothing to train on"):
        split(with_ids(MANY), a_task(test=0.7, validation=0.4))


def test_an_empty_side_is_refused() -> None:
    with pytest.raises(PromptmillError, match="task t: data: none of 2 usable rows falls on the side for "):
        split(with_ids(MANY.head(2)), a_task())


def test_a_label_without_training_examples_is_refused() -> None:
    test = with_ids(rows(("unseen one", "a"), ("unseen two", "rare")))
    with pytest.raises(PromptmillError, match='column "label" has labels without a training example: "rare"'):
        split(with_ids(MANY), a_task(), test)


def test_splits_come_back_as_they_were_saved_and_replace_older_ones(tmp_path: Path) -> None:
    first, second = split(with_ids(MANY), a_task()), split(with_ids(MANY.head(300)), a_task(validation=0.0))
    for splits in (first, second):
        splits.save(tmp_path / "deep" / "splits")
        loaded = Splits.load(tmp_path / "deep" / "splits")
        assert loaded.digest == splits.digest
        assert loaded.train.equals(splits.train)
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["splits"]
    assert sorted(p.name for p in (tmp_path / "deep" / "splits").iterdir()) == ["test.parquet", "train.parquet", "validation.parquet"]


def test_a_save_that_fails_leaves_the_old_splits(tmp_path: Path) -> None:
    splits = split(with_ids(MANY), a_task())
    splits.save(tmp_path / "splits")
    with pytest.raises(AttributeError):
        Splits(splits.train.head(1), splits.validation, None).save(tmp_path / "splits")  # type: ignore[arg-type]
    assert Splits.load(tmp_path / "splits").digest == splits.digest
    assert [p.name for p in tmp_path.iterdir()] == ["splits"]


def test_missing_or_damaged_splits_are_named(tmp_path: Path) -> None:
    with pytest.raises(PromptmillError, match=r"train.parquet: is missing. Make the splits again"):
        Splits.load(tmp_path / "none")
    split(with_ids(MANY), a_task()).save(tmp_path / "splits")
    (tmp_path / "splits" / "test.parquet").write_bytes(b"damaged")
    with pytest.raises(PromptmillError, match=r"test.parquet: cannot be read \("):
        Splits.load(tmp_path / "splits")


def test_prepare_reads_cleans_and_splits_a_file(tmp_path: Path) -> None:
    pl.concat([MANY, rows(("", "a"))]).write_csv(tmp_path / "examples.csv")
    splits, report = prepare(a_task(tmp_path))
    assert (report.rows_read, report.rows_kept, report.empty, report.test_file) == (401, 400, 1, None)
    assert not find_leakage(splits, a_task(tmp_path))


def test_prepare_keeps_train_and_validation_clear_of_the_test_file(tmp_path: Path) -> None:
    test = rows(("message number 7 about something", "b"), ("Message number 8 about something!", "a"), ("fresh and new", "a"), ("", "a"))
    MANY.write_csv(tmp_path / "examples.csv")
    test.write_csv(tmp_path / "test.csv")
    task = a_task(tmp_path, test_path="test.csv")
    splits, report = prepare(task)
    assert (len(splits.test), report.leaked, report.rows_kept) == (3, 2, 398)
    assert report.test_file is not None
    assert (report.test_file.empty, len(report.examples["leaked"])) == (1, 2)
    assert not find_leakage(splits, task)


def test_a_test_file_equal_to_the_training_file_is_refused(tmp_path: Path) -> None:
    MANY.write_csv(tmp_path / "examples.csv")
    with pytest.raises(PromptmillError, match=r"data.path: every row stands in data.test_path too"):
        prepare(a_task(tmp_path, test_path="examples.csv"))


@pytest.mark.parametrize(
    ("test", "finding"),
    [
        (rows(("one", "a"), ("two", None), ("three", "c")), r'"test.csv" has labels without an example in data.path: "c"\. Add examples'),
        (rows(("one", None), ("two", None)), r'in "test.csv" column "label" is empty in all 2 rows\. Fill it in'),
        (rows(("one", None), (None, "a")), r'in "test.csv" no usable row is left of 2 \(2 empty'),
    ],
)
def test_what_is_wrong_in_the_test_file_is_said_of_it(tmp_path: Path, test: pl.DataFrame, finding: str) -> None:
    MANY.write_csv(tmp_path / "examples.csv")
    test.write_csv(tmp_path / "test.csv")
    with pytest.raises(PromptmillError, match=f"task t: data.test_path: {finding}"):
        prepare(a_task(tmp_path, test_path="test.csv"))


def test_prepare_gives_the_same_digest_every_time(tmp_path: Path) -> None:
    MANY.write_csv(tmp_path / "examples.csv")
    assert prepare(a_task(tmp_path))[0].digest == prepare(a_task(tmp_path))[0].digest


@pytest.mark.shared_data
@needs_shared
@pytest.mark.parametrize(
    ("name", "objective", "text", "target", "leaked"),
    [("banking77", "classify", "text", "label", 25), ("e2e_nlg", "generate", "source", "target", 0)],
)
def test_real_sets_are_prepared_without_leakage(name: str, objective: str, text: str, target: str, leaked: int) -> None:
    task = a_task(
        SHARED,
        objective=objective,
        template=f"{{{{ {text} }}}}",
        path=f"{name}_train.parquet",
        test_path=f"{name}_test.parquet",
        target=target,
    )
    splits, report = prepare(task)
    assert report.leaked >= leaked
    assert not find_leakage(splits, task)
    with tempfile.TemporaryDirectory() as folder:
        splits.save(Path(folder) / "splits")
        assert Splits.load(Path(folder) / "splits").digest == splits.digest


def test_a_label_of_the_task_file_that_no_row_has_is_refused(tmp_path: Path) -> None:
    MANY.write_csv(tmp_path / "examples.csv")
    rows(*((f"another text {i} of the test file", label) for i, label in enumerate(["a", "b", "none of these"]))).write_csv(
        tmp_path / "test.csv"
    )
    described = {"labels": {"a": "first", "b": "second"}}
    assert len(prepare(a_task(tmp_path, **described))[0].test) > 0
    with pytest.raises(PromptmillError, match=r'task t: labels: "c" is no label of the data\. Known: a, b\.'):
        prepare(a_task(tmp_path, labels={"a": "first", "c": "second"}))
    with pytest.raises(PromptmillError, match=r'task t: evaluate.out_of_scope: "none of these" is no label of the data'):
        prepare(a_task(tmp_path, evaluate={"out_of_scope": "none of these"}))
    beyond = {"evaluate": {"out_of_scope": "none of these"}, "test_path": "test.csv"}
    assert "none of these" in prepare(a_task(tmp_path, **beyond, **described))[0].test["label"]
    with pytest.raises(PromptmillError, match=r'out_of_scope: "none of this" is no label of the data\. Did you mean "none of these"\?'):
        prepare(a_task(tmp_path, **{**beyond, "evaluate": {"out_of_scope": "none of this"}}))
