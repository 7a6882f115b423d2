from __future__ import annotations

import json
import time
import unicodedata
from pathlib import Path

import polars as pl
import pytest
from data_builders import SHARED, a_task, needs_shared, rows
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_core.data import clean, read_examples
from prompt_core.data.clean import example_id
from prompt_core.errors import PromptmillError

texts = st.text(st.characters(exclude_categories=["Cs"]))
# Two usable labels of two rows each, so that a test looks at what it adds.
BASE = (("my parcel is late", "late"), ("still waiting for it", "late"), ("it never came", "lost"), ("cannot be found", "lost"))


@given(st.lists(texts, min_size=1, max_size=3))
def test_an_id_does_not_depend_on_unicode_form_or_whitespace(values: list[str]) -> None:
    other = ["  " + "\u00a0\n\t".join(unicodedata.normalize("NFD", word) for word in value.split()) + "\u2003" for value in values]
    assert example_id(other) == example_id(values)
    assert len(example_id(values)) == 32


@given(texts, texts)
def test_different_texts_have_different_ids(a: str, b: str) -> None:
    same = " ".join(unicodedata.normalize("NFC", a).split()) == " ".join(unicodedata.normalize("NFC", b).split())
    assert (example_id([a]) == example_id([b])) == same


def test_fields_do_not_run_into_each_other() -> None:
    assert example_id(["a b", "c"]) != example_id(["a", "b c"])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(texts, st.sampled_from("xy")), max_size=8))
def test_cleaning_twice_changes_nothing(pairs: list[tuple[str, str]]) -> None:
    task = a_task(objective="generate")
    frame, _ = clean(rows(*BASE, *pairs), task)
    again, report = clean(frame.drop("_id"), task)
    assert again.equals(frame)
    assert report.rows_read == report.rows_kept


def test_texts_keep_newlines_and_entities_but_not_outer_whitespace() -> None:
    frame, _ = clean(rows((" e\u0301t\u00e9 &amp;\n\n  so ", " late "), *BASE), a_task())
    assert frame.row(0)[1:] == ("\u00e9t\u00e9 &amp;\n\n  so", "late")
    assert frame.columns == ["_id", "text", "label"]


def test_empty_rows_are_counted_with_their_numbers() -> None:
    frame, report = clean(rows(*BASE, ("  \n", "late"), (None, "lost"), ("no label", "")), a_task())
    assert (len(frame), report.empty, report.empty_rows) == (4, 3, (5, 6, 7))
    assert report.examples["empty"][2] == "row 7: 'no label' -> ''"


def test_a_number_that_is_none_is_an_absent_value(tmp_path: Path) -> None:
    values = [1.0, float("nan"), 0.0, 1.0, 0.0]
    pl.DataFrame({"text": [f"message {i}" for i in range(5)], "label": values}).write_parquet(tmp_path / "a.parquet")
    task = a_task(tmp_path, path="a.parquet")
    frame, report = clean(read_examples(task), task)
    assert (frame["label"].to_list(), report.empty_rows) == (["1", "0", "1", "0"], (2,))


def test_the_first_of_equal_rows_stays() -> None:
    frame, report = clean(rows(("my  parcel is late", "late"), *BASE), a_task())
    assert report.duplicates == 1
    assert frame["text"][0] == "my  parcel is late"


def test_a_text_with_several_labels_is_dropped_whole() -> None:
    frame, report = clean(rows(*BASE, ("so what", "late"), ("so what", "lost"), ("so what", "late")), a_task())
    assert (report.conflicting, report.duplicates, len(frame)) == (3, 0, 4)


def test_a_text_to_generate_from_may_have_several_references() -> None:
    task = a_task(objective="generate")
    frame, report = clean(
        rows(("name[Aromi]", "Aromi is a pub."), ("name[Aromi]", "A pub: Aromi."), ("name[Aromi]", "Aromi is a pub.")), task
    )
    assert (len(frame), report.duplicates, report.near_duplicates) == (2, 1, 0)
    assert frame["_id"].n_unique() == 1


def test_the_earlier_of_near_duplicates_stays() -> None:
    frame, report = clean(rows(*BASE, ("My parcel is LATE!", "late")), a_task())
    assert (report.near_duplicates, frame["text"][0]) == (1, "my parcel is late")
    assert report.examples["near_duplicates"] == ("row 5, like row 1: 'My parcel is LATE!' -> 'late'",)


def test_a_threshold_of_one_keeps_all_but_equal_texts() -> None:
    _, report = clean(rows(*BASE, ("My parcel is LATE!", "late")), a_task(near_duplicate=1.0))
    assert report.near_duplicates == 0


def test_the_report_adds_up_and_is_json() -> None:
    _, report = clean(rows(*BASE, ("", "late"), BASE[0], ("It never came.", "lost"), ("q", "late"), ("q", "lost")), a_task())
    removed = report.empty + report.conflicting + report.duplicates + report.near_duplicates
    assert (removed, report.rows_read - report.rows_kept) == (5, 5)
    assert json.loads(json.dumps(report.as_dict())) == report.as_dict()


def test_a_field_or_target_that_is_empty_in_all_rows_is_named() -> None:
    with pytest.raises(PromptmillError, match='task t: template: column "text" is empty in all 2 rows'):
        clean(rows((None, "a"), (" ", "b")), a_task())
    with pytest.raises(PromptmillError, match=r'task t: data.target: column "label" is empty in all 1 rows'):
        clean(rows(("a", None)), a_task())


def test_nothing_left_is_an_error_with_the_counts() -> None:
    with pytest.raises(PromptmillError, match="no usable row is left of 3 \\(1 empty, 2 conflicting, 0 duplicates"):
        clean(rows(("", "a"), ("a", "a"), ("a", "b")), a_task())


def test_one_label_only_is_an_error() -> None:
    with pytest.raises(PromptmillError, match=r'data.target: column "label" has only one label, "late", in all 2 usable rows'):
        clean(rows(*BASE[:2]), a_task())


def test_a_label_with_one_example_is_an_error_that_names_it() -> None:
    with pytest.raises(PromptmillError, match='column "label" has labels with a single usable example: "customs", "fire"'):
        clean(rows(*BASE, ("it burns", "fire"), ("held at customs", "customs")), a_task())
    many = [(f"text number {i}", f"label{i}") for i in range(13)]
    with pytest.raises(PromptmillError, match='"label6" and 3 more'):
        clean(rows(*BASE, *many), a_task())


@pytest.mark.shared_data
@needs_shared
def test_fifteen_thousand_real_rows_are_cleaned_in_seconds() -> None:
    task = a_task(SHARED, path="clinc150_train.parquet")
    frame = read_examples(task)
    start = time.process_time()
    kept, report = clean(frame, task)
    assert time.process_time() - start < 20
    assert report.rows_read == 15_000
    assert 14_900 < len(kept) < 15_000


@pytest.mark.shared_data
@needs_shared
def test_the_traps_of_the_real_sets_are_found() -> None:
    task = a_task(SHARED, path="pros_cons_train.parquet", near_duplicate=1.0)
    frame, report = clean(read_examples(task), task)
    assert report.conflicting > 300
    assert report.duplicates > 1_000
    assert frame["_id"].n_unique() == len(frame)
    subj = a_task(SHARED, path="subj_train.parquet")
    kept, _ = clean(read_examples(subj), subj)
    assert kept.select(pl.col("text").str.contains(r"&\w+;|&#").sum()).item() > 100
