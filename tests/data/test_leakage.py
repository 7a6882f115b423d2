from __future__ import annotations

import json

from data_builders import a_task, rows, with_ids

from prompt_core.data import Leakage, Splits, find_leakage, remove_leakage

TRAIN = with_ids(rows(("where is my parcel", "a"), ("it arrived broken", "b"), ("wrong address on it", "a")))
FRESH = with_ids(rows(("customs want money", "a")))


def test_equal_and_close_rows_leave_train_and_are_counted() -> None:
    test = with_ids(rows(("where  is my parcel", "b"), ("It arrived broken!", "b")))
    rest, leakage = remove_leakage(TRAIN, test, ("text",), 0.9)
    assert rest["text"].to_list() == ["wrong address on it"]
    assert (leakage.exact, leakage.near) == (1, 1)
    assert leakage.examples == ("'where is my parcel'", "'it arrived broken' is like 'It arrived broken!'")


def test_a_threshold_of_one_compares_ids_alone() -> None:
    test = with_ids(rows(("where is my parcel", "b"), ("It arrived broken!", "b")))
    rest, leakage = remove_leakage(TRAIN, test, ("text",), 1.0)
    assert (len(rest), leakage.exact, leakage.near) == (2, 1, 0)


def test_nothing_in_common_changes_nothing() -> None:
    rest, leakage = remove_leakage(TRAIN, FRESH, ("text",), 0.9)
    assert rest.equals(TRAIN)
    assert not leakage
    assert remove_leakage(TRAIN.clear(), FRESH, ("text",), 0.9)[1] == remove_leakage(TRAIN, FRESH.clear(), ("text",), 0.9)[1] == Leakage()


def test_leakage_is_found_between_every_two_sides() -> None:
    close = with_ids(rows(("Where is my parcel?", "a")))
    for splits in (Splits(TRAIN, close, FRESH), Splits(TRAIN, FRESH, close), Splits(FRESH, TRAIN, close)):
        leakage = find_leakage(splits, a_task())
        assert (leakage.exact, leakage.near) == (0, 1)
        assert json.loads(json.dumps(leakage.as_dict())) == leakage.as_dict()
    assert not find_leakage(Splits(TRAIN, FRESH.clear(), FRESH), a_task())
