"""Results label by label and slice by slice, the rows to look at, and the gate's caps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from prompt_core.criteria import GateSpec
from prompt_core.evaluation import About, Contender, Evaluation, Rows, evaluate_contenders, pooled, summary
from prompt_core.evaluation.cases import cases
from prompt_core.evaluation.classes import classified
from prompt_core.evaluation.record import Cost
from prompt_core.evaluation.slices import slices
from prompt_core.task_file import parse_task

labels = st.sampled_from(["late", "lost", "refund"])
pairs = st.lists(st.tuples(labels, labels), min_size=1, max_size=40)


def a_task(**parts: Any) -> Any:
    fields = {"name": "t", "backbone": "minilm", "objective": "classify", "template": "{{ x }}", "data": {"path": "a.csv", "target": "y"}}
    return parse_task(fields | parts, "t.yaml", Path())


def evaluated(targets: list[str], *contenders: Contender, seconds: float | None = None, tokens: int = 16, **gate: Any) -> Evaluation:
    tuned = Contender("tuned", "tuned", targets, seconds=seconds)
    everybody = [*contenders] if any(c.kind == "tuned" for c in contenders) else [*contenders, tuned]
    untuned = Contender("before", "untuned", ["?"] * len(targets))
    rows = Rows([{"x": str(i)} for i in range(len(targets))], targets)
    about = About("0" * 64, cost=Cost(prompt_tokens=tokens, prompt_bytes=9, input_tokens=4.0))
    return evaluate_contenders(a_task(gate=gate), rows, [untuned, *everybody], about)


@settings(max_examples=40, deadline=None)
@given(pairs)
def test_classes_are_scikit_learns(rows):
    targets, predictions = (list(column) for column in zip(*rows, strict=True))
    found = classified([Contender("tuned", "tuned", predictions)], targets, None)
    known = [each.label for each in found.classes]
    assert known == sorted(set(targets))
    expected = precision_recall_fscore_support(targets, predictions, labels=known, zero_division=0)
    for column, name in enumerate(("precision", "recall", "f1")):
        assert [getattr(each, name) for each in found.classes] == pytest.approx((100 * expected[column]).tolist(), abs=1e-3)
    assert [each.rows for each in found.classes] == expected[3].tolist()
    again = confusion_matrix(*found.pairs, labels=found.labels)
    assert (again == confusion_matrix(targets, predictions, labels=found.labels)).all()
    assert [each.f1 for each in found.worst] == sorted(each.f1 for each in found.classes)


def test_a_class_that_production_had_right_may_not_be_lost():
    targets = ["a"] * 90 + ["b"] * 10
    forgetful = Contender("tuned", "tuned", ["a"] * 100)
    production = Contender("production", "production", ["a"] * 82 + ["b"] * 18)
    found = evaluated(targets, production, forgetful)
    assert not found.verdict.passed
    assert found.verdict.reasons[-1].startswith('class "b" loses 100.0 points of recall against production (10 rows, p 0.0020 after Holm')
    assert evaluated(targets, production, forgetful, max_class_loss=None).verdict.passed
    assert evaluated(targets, production, forgetful, max_class_loss=100).verdict.passed


def test_classes_that_production_does_not_know_do_not_dilute_the_test_of_those_that_it_does():
    new = [f"new {i}" for i in range(40)]
    targets = ["a"] * 90 + ["b"] * 10 + new
    production = Contender("production", "production", ["a"] * 82 + ["b"] * 18 + ["a"] * 40, labels=["a", "b"])
    found = evaluated(targets, production, Contender("tuned", "tuned", ["a"] * 100 + new))
    assert [each.label for each in found.classified.classes if each.recall_before is not None] == ["a", "b"]
    assert not found.verdict.passed
    assert found.verdict.reasons[-1].startswith('class "b" loses 100.0 points of recall against production (10 rows, p 0.0020 after Holm')


def test_a_class_of_a_few_rows_is_not_shown_to_be_lost():
    targets = ["a"] * 97 + ["b"] * 3
    found = evaluated(targets, Contender("production", "production", ["a"] * 94 + ["b"] * 6), Contender("tuned", "tuned", ["a"] * 100))
    assert found.verdict.passed
    assert found.verdict.reasons[-1] == "none of 2 classes is shown to lose more than 20 points of recall against production"


def test_without_a_version_in_production_no_class_is_compared():
    assert not any("class" in reason for reason in evaluated(["a", "b"] * 20).verdict.reasons)


@pytest.mark.parametrize(
    ("gate", "passed", "reason"),
    [
        ({"max_tokens": 16}, True, "the prompt is 16 tokens long; at most 16 are allowed"),
        ({"max_tokens": 15}, False, "the prompt is 16 tokens long; at most 15 are allowed"),
        ({"max_ms_per_row": 51}, True, "a test row took 50.0 ms on the machine of the evaluation; at most 51 ms are allowed"),
        ({"max_ms_per_row": 10}, False, "a test row took 50.0 ms on the machine of the evaluation; at most 10 ms are allowed"),
    ],
)
def test_length_and_time_are_capped(gate, passed, reason):
    found = evaluated(["a"] * 20, seconds=1.0, **gate)
    assert found.verdict.passed is passed and found.verdict.reasons[-1] == reason
    assert found.seconds == {"tuned": 1.0}


def test_a_time_that_was_not_measured_does_not_pass():
    assert evaluated(["a"] * 20, max_ms_per_row=10).verdict.reasons[-1].startswith("the time for a test row was not measured")
    assert not evaluated(["a"] * 20, max_ms_per_row=10).verdict.passed


def test_the_gates_defaults_only_forbid():
    assert GateSpec().model_dump() == {
        "metric": None,
        "min_gain": 0.0,
        "alpha": 0.01,
        "max_class_loss": 20.0,
        "max_ms_per_row": None,
        "max_tokens": None,
    }


@settings(max_examples=40, deadline=None)
@given(pairs, st.data())
def test_slices_part_the_rows_and_each_has_the_value_of_its_own_rows(rows, data):
    targets, predictions = (list(column) for column in zip(*rows, strict=True))
    column = data.draw(st.lists(st.sampled_from(["de", "fr", ""]), min_size=len(rows), max_size=len(rows)))
    found = slices({"country": column}, {"tuned": pooled("accuracy", predictions, targets)})
    assert sum(each.rows for each in found) == len(rows)
    for each in found:
        member = [i for i, value in enumerate(column) if (value or "(empty)") == each.value]
        value = summary("accuracy", [predictions[i] for i in member], [targets[i] for i in member])
        assert each.values["tuned"].value == pytest.approx(value, abs=1e-5)


def test_many_numbers_become_quarters_and_many_words_the_most_frequent_and_the_rest():
    right = pooled("accuracy", ["a"] * 100, ["a"] * 100)
    quarters = slices({"n": [str(i) for i in range(100)]}, {"tuned": right})
    assert [(each.value, each.rows) for each in quarters] == [
        ("24.75 to 49.5", 25),
        ("49.5 to 74.25", 25),
        ("over 74.25", 25),
        ("up to 24.75", 25),
    ]
    large = slices({"n": [str(1_700_000_000 + i) for i in range(60)] + [""] * 40}, {"tuned": right})
    assert [each.rows for each in large] == [40, 15, 15, 15, 15] and large[0].value == "(empty)"
    assert slices({"n": [*map(str, range(99)), "nan"]}, {"tuned": right})[-1].value == "(others)"
    words = slices({"n": ["w"] * 60 + [f"x{i}" for i in range(40)]}, {"tuned": right})
    assert (words[0].value, words[0].rows) == ("w", 60)
    assert (len(words), words[-1].value, words[-1].rows) == (13, "(others)", 29)


def test_a_classifiers_cases_are_its_most_confident_mistakes():
    sure = np.array([[0.9, 0.1], [0.6, 0.4], [0.99, 0.01], [0.2, 0.8]])
    tuned = Contender("tuned", "tuned", ["a", "a", "a", "b"], probabilities=sure, labels=["a", "b"])
    production = Contender("production", "production", ["b", "b", "b", "b"])
    before, found = cases(
        [{"x": str(i)} for i in range(4)], ["b", "b", "a", "b"], [Contender("zero", "untuned", ["a"] * 4), production, tuned]
    )
    assert before == "production"
    assert [(case.input["x"], case.confidence, case.before, case.after) for case in found] == [("0", 90.0, "b", "a"), ("1", 60.0, "b", "a")]


def test_a_writers_cases_are_the_outputs_that_changed_most():
    zero, tuned = Contender("zero", "untuned", ["same", "on Monday", "no"]), Contender("tuned", "tuned", ["same", "on Mondays", "quite"])
    _, found = cases([{"x": str(i)} for i in range(3)], ["t"] * 3, [zero, tuned])
    assert [case.input["x"] for case in found] == ["2", "1"]
    assert cases([{"x": "0"}], ["t"], [Contender("tuned", "tuned", ["x"])]) == ("", ())


def test_what_says_nothing_before_and_after_has_not_changed():
    tuned, before = Contender("tuned", "tuned", ["", "a new text", "same"]), Contender("zero_shot", "untuned", ["", "an old one", "same"])
    _, found = cases([{"x": str(i)} for i in range(3)], ["t"] * 3, [before, tuned])
    assert [case.after for case in found] == ["a new text"]
