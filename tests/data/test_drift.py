"""Drift: the same population is left alone, another one is found, and the profile gives nothing away."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from data_builders import a_task, with_ids
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_core.data.drift import Drift, Profile, chance_level, drift, profile_of, stability_index
from prompt_core.errors import PromptmillError
from prompt_core.manifest import DataRecord

VOCABULARY = [f"word{i}" for i in range(300)]
counts = st.lists(st.integers(0, 200), min_size=2, max_size=10)


def messages(
    rows: int, seed: int, *, words: list[str] = VOCABULARY, longest: int = 20, labels: str = "ab", share: float = 0.5
) -> pl.DataFrame:
    """Random messages whose words are drawn with unequal chances."""
    random = np.random.default_rng(seed)
    chances = 1 / np.arange(1, len(words) + 1)
    texts = [" ".join(random.choice(words, random.integers(3, longest), p=chances / chances.sum())) for _ in range(rows)]
    given = random.choice(list(labels), rows, p=[share, 1 - share])
    return with_ids(pl.DataFrame({"text": texts, "label": given}))


def shifts(found: Drift) -> dict[str, bool]:
    return {shift.measure: shift.drifted for shift in found.shifts}


def of(new: pl.DataFrame) -> Drift:
    task = a_task()
    return drift(profile_of(messages(600, 0), task), new, task)


@pytest.mark.parametrize("rows", [20, 100, 600])
def test_other_draws_of_the_same_messages_have_not_drifted(rows):
    assert not any(of(messages(rows, seed)).drifted for seed in range(1, 6))


@pytest.mark.parametrize(
    ("changed", "measures"),
    [
        ({"longest": 60}, {"length"}),
        ({"words": [f"andere{i}" for i in range(300)]}, {"vocabulary"}),
        ({"share": 0.95}, {"labels"}),
        ({"labels": "cd"}, {"labels"}),
    ],
)
def test_other_messages_have_in_the_measure_that_changed(changed, measures):
    found = of(messages(400, 1, **changed))
    assert found.drifted and {name for name, drifted in shifts(found).items() if drifted} == measures


def test_labels_are_compared_with_the_target_with_predictions_or_not_at_all():
    new = messages(200, 1, share=0.95)
    assert shifts(of(new))["labels"]
    assert shifts(of(new.rename({"label": "prediction"})))["labels"]
    assert "labels" not in shifts(of(new.drop("label")))


def test_predictions_are_compared_with_those_of_the_evaluation_for_errors_are_no_drift():
    task, new = a_task(), messages(200, 1, share=0.8).rename({"label": "prediction"})
    profile = profile_of(messages(600, 0), task)
    assert shifts(drift(profile, new, task))["labels"]  # half of the examples are "a"
    assert not shifts(drift(profile, new, task, predicted={"a": 83, "b": 17}))["labels"]
    assert shifts(drift(profile, new.rename({"prediction": "label"}), task, predicted={"a": 83, "b": 17}))["labels"]


def test_a_few_rows_are_said_to_be_too_few():
    found = of(messages(12, 1))
    assert not found.drifted and "no more than chance: so few rows (12)" in found.table()


@settings(max_examples=60, deadline=None)
@given(counts, st.data())
def test_the_index_is_zero_for_equal_shares_symmetric_and_never_negative(before, data):
    after = data.draw(st.lists(st.integers(0, 200), min_size=len(before), max_size=len(before)))
    assert stability_index(before, before) == 0
    assert stability_index(before, after) == pytest.approx(stability_index(after, before)) and stability_index(before, after) >= 0


def test_the_chance_level_is_exceeded_about_once_in_a_hundred_draws():
    random, shares = np.random.default_rng(0), np.full(10, 0.1)
    draws = [(random.multinomial(400, shares), random.multinomial(150, shares)) for _ in range(2000)]
    above = np.mean([stability_index(a.tolist(), b.tolist()) > chance_level(a.tolist(), b.tolist()) for a, b in draws])
    assert 0.004 < above < 0.02


def test_a_profile_is_the_same_whatever_the_order_and_holds_no_word():
    frame, task = messages(50, 0), a_task()
    profile = profile_of(frame, task)
    assert profile == profile_of(frame.reverse(), task)
    plain = json.dumps(profile.model_dump())
    assert "word" not in plain.replace('"words"', "") and len(plain) < 1500
    assert sum(profile.lengths) == profile.rows == 50 and sum(profile.labels.values()) == 50
    record = DataRecord(train_rows=50, train="d", validation_rows=0, validation="d", profile=profile)
    assert DataRecord.model_validate_json(record.model_dump_json()).profile == profile


def test_a_file_without_a_field_or_without_rows_is_refused():
    task = a_task()
    profile = profile_of(messages(20, 0), task)
    with pytest.raises(PromptmillError, match=r'new.csv: has no column "text", a field of the template'):
        drift(profile, pl.DataFrame({"txt": ["a"]}), task, "new.csv")
    with pytest.raises(PromptmillError, match=r"new.csv: has no rows"):
        drift(profile, pl.DataFrame({"text": []}, schema={"text": pl.String}), task, "new.csv")


def test_values_that_are_no_texts_count_as_texts():
    task = a_task()
    found = drift(Profile(rows=1, length_edges=(1,), lengths=(1, 0), words=(0,) * 128, labels={}), pl.DataFrame({"text": [1, None]}), task)
    assert found.rows == 2
