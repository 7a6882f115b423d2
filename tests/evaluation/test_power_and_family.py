"""What a test set can show, and what is left of it among many tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import false_discovery_control, ttest_rel

from pipelines.metadata import splits_metadata
from prompt_core.data import Splits
from prompt_core.evaluation import About, Contender, Evaluation, Rows, corrected, evaluate_contenders, gate_p_value, holm, power_sentence
from prompt_core.evaluation.paired import mcnemar
from prompt_core.evaluation.power import smallest_gain, smallest_mean_gain
from prompt_core.task import TaskSpec
from prompt_core.task_file import parse_task

p_values = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def a_task(objective: str = "classify", **parts: Any) -> TaskSpec:
    fields = {"name": "t", "backbone": "minilm", "objective": objective, "template": "{{ x }}", "data": {"path": "a.csv", "target": "y"}}
    return parse_task(fields | parts, "t.yaml", Path())


def holm_by_the_book(p: list[float], alpha: float) -> list[bool]:
    """Holm (1979), as he writes it: step down, stop at the first that is not rejected."""
    rejected = [False] * len(p)
    for rank, number in enumerate(np.argsort(p, kind="stable")):
        if p[number] >= alpha / (len(p) - rank):
            break
        rejected[number] = True
    return rejected


@settings(max_examples=60, deadline=None)
@given(p_values, st.floats(0.001, 0.4))
def test_holms_adjusted_values_reject_what_his_procedure_rejects(p, alpha):
    adjusted = holm(p)
    near = [abs(a - alpha) < 1e-12 for a in adjusted]  # a product and a quotient round differently
    assert [a < alpha or n for a, n in zip(adjusted, near, strict=True)] == [
        r or n for r, n in zip(holm_by_the_book(p, alpha), near, strict=True)
    ]


def test_the_smallest_p_pays_for_all_and_the_order_stays():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@settings(max_examples=60, deadline=None)
@given(p_values)
def test_holm_lies_between_no_correction_and_bonferronis(p):
    corrected = holm(p)
    assert sorted(range(len(p)), key=lambda i: (corrected[i], p[i])) == sorted(range(len(p)), key=lambda i: p[i])
    for own, adjusted in zip(p, corrected, strict=True):
        assert own <= adjusted <= min(1.0, len(p) * own) + 1e-15
    benjamini = false_discovery_control(p)
    assert all(adjusted >= least - 1e-12 for adjusted, least in zip(holm(p), benjamini, strict=True))
    assert holm(p[::-1]) == pytest.approx(holm(p)[::-1])


def evaluated(won: int, name: str = "tuned", untuned: bool = True) -> Evaluation:
    """A gain of so many of 100 rows."""
    targets = ["a"] * 100
    before = Contender("before", "untuned" if untuned else "rival", ["b"] * won + ["a"] * (100 - won))
    return evaluate_contenders(a_task(), Rows([{"x": "."}] * 100, targets), [before, Contender(name, "tuned", targets)], About("0" * 64))


def test_a_gain_that_is_shown_alone_need_not_be_shown_among_many_tasks():
    weak, strong = evaluated(8), evaluated(40)
    assert weak.verdict.passed and gate_p_value(weak) == pytest.approx(0.5**8)
    among = corrected([weak, strong, strong])
    assert [each.verdict.passed for each in among] == [True, True, True]  # 0.0039 stays: it is the largest of the three
    among = corrected([weak] * 3)
    assert [each.verdict.passed for each in among] == [False] * 3
    assert among[0].verdict.reasons[-1] == "not shown among the 3 tasks of this run: p 0.0117 after Holm's correction; needs below 0.01"
    assert among[0].contenders == weak.contenders


def test_one_task_alone_is_left_as_it_is_and_one_that_failed_stays_failed():
    assert corrected([evaluated(8)]) == [evaluated(8)]
    failed, passed = corrected([evaluated(2), evaluated(40)])
    assert not failed.verdict.passed and passed.verdict.passed
    assert gate_p_value(evaluated(8, untuned=False)) == 1.0


@pytest.mark.parametrize("rows", [20, 100, 500])
@pytest.mark.parametrize("alpha", [0.01, 0.05])
def test_the_sentence_names_a_gain_that_mcnemars_test_shows_and_no_smaller_one(rows, alpha):
    task = a_task(gate={"alpha": alpha})
    gain = smallest_gain(rows, alpha)
    lost = round(0.01 * rows)
    won = round(gain * rows / 100) + lost
    ours, theirs = np.array([True] * won + [False] * lost), np.array([False] * won + [True] * lost)
    assert mcnemar(ours, theirs)[0] < alpha
    assert mcnemar(ours[1:], theirs[1:])[0] >= alpha
    said = power_sentence(task, rows)
    assert said.startswith(f"{rows} test rows can show a gain of ") and said.endswith(f"in accuracy (p below {alpha:g})")
    assert gain <= float(said.split("gain of ")[1].split()[0]) < gain + 0.1


def test_the_sentence_of_the_manual_holds():
    assert power_sentence(a_task(), 100) == "100 test rows can show a gain of 9 points or more in accuracy (p below 0.01)"


@pytest.mark.parametrize(("rows", "said"), [(0, "no test rows: no gain can be shown"), (4, "4 test rows cannot show any gain in accuracy")])
def test_too_few_rows_are_said_to_be_too_few(rows, said):
    assert power_sentence(a_task(), rows).startswith(said)


def test_of_a_mean_the_gain_is_one_that_a_paired_test_shows_at_the_assumed_spread():
    rows, alpha = 200, 0.01
    gain = smallest_mean_gain(rows, alpha)
    noise = np.random.default_rng(0).normal(size=rows)
    differences = gain * 1.02 + 20 * (noise - noise.mean()) / noise.std()
    assert ttest_rel(differences, np.zeros(rows), alternative="greater").pvalue < alpha
    assert ttest_rel(differences - 0.1 * gain, np.zeros(rows), alternative="greater").pvalue > alpha
    said = power_sentence(a_task("generate"), rows)
    assert said.startswith("200 test rows can show a gain of about 3.3 points or more in chrf") and "rows differ by 20 points" in said


def test_a_smaller_gain_than_is_said_passes_where_no_row_gets_worse():
    contenders = [Contender("label_names", "untuned", ["a"] * 93 + ["b"] * 7), Contender("tuned", "tuned", ["a"] * 100)]
    found = evaluate_contenders(a_task(), Rows([{"x": "1"}] * 100, ["a"] * 100), contenders, About("0" * 64))
    assert found.smallest_gain == 9 and found.verdict.passed
    contenders[0] = Contender("label_names", "untuned", ["a"] * 95 + ["b"] * 5)
    found = evaluate_contenders(a_task(), Rows([{"x": "1"}] * 100, ["a"] * 100), contenders, About("0" * 64))
    assert "no smaller one" not in found.table() and "where one row in a hundred gets worse" in found.table()


def test_what_is_asked_once_counts_once_before_tuning_too():
    texts = pl.DataFrame({"_id": ["a"] * 8 + ["b"] * 8, "x": ["one"] * 8 + ["two"] * 8, "y": [f"answer {i}" for i in range(16)]})
    said = splits_metadata(Splits(texts, texts.clear(), texts), a_task("generate"))
    assert str(said["power"]) == power_sentence(a_task("generate"), 2)
    assert said["test rows"] == 16
