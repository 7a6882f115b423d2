"""Intervals that cover, p values that are as rare as they say, and agreement with scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from prompt_core.evaluation.metrics import from_scores, pooled, summary
from prompt_core.evaluation.paired import RESAMPLES, bootstrap_interval, compare, compare_pooled, exact_interval, interval, mcnemar
from prompt_core.evaluation.power import smallest_gain
from prompt_core.evaluation.wanted import Wanted

LABELS = np.array(["late", "lost", "damaged"])


def rows_with_facts(generator: np.random.Generator, rows: int, share: float) -> tuple[list[str], list[str]]:
    """Outputs that keep each of four facts with the given probability, and the facts."""
    names = ["alpha", "beta", "gamma", "delta"]
    kept = generator.random((rows, 4)) < share
    return [" ".join(np.array(names)[k]) for k in kept], ["\n".join(f"{i}: {n}" for i, n in enumerate(names))] * rows


def noisy(generator: np.random.Generator, targets: np.ndarray, right: float) -> list[str]:
    """Labels that are right with the given probability, else drawn at random."""
    return list(np.where(generator.random(len(targets)) < right, targets, generator.choice(LABELS, len(targets))))


def test_the_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        outputs, facts = rows_with_facts(generator, 50, 0.7)
        found = bootstrap_interval(pooled("facts_kept", outputs, outputs, Wanted(facts=facts)), level=0.9)
        hits += found.low <= 70 <= found.high
    assert binomtest(hits, 200, 0.9).pvalue > 0.01


def test_the_bootstrap_interval_of_a_mean_is_scipys():
    from scipy.stats import bootstrap

    outputs, facts = rows_with_facts(np.random.default_rng(1), 80, 0.6)
    measured = pooled("facts_kept", outputs, outputs, Wanted(facts=facts))
    theirs = bootstrap((measured.rows[:, 0],), np.mean, n_resamples=20_000, method="percentile", rng=2).confidence_interval
    ours = bootstrap_interval(measured)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.6)


def test_a_wider_level_gives_a_wider_interval():
    outputs, facts = rows_with_facts(np.random.default_rng(1), 40, 0.6)
    measured = pooled("facts_kept", outputs, outputs, Wanted(facts=facts))
    narrow, wide = bootstrap_interval(measured, 0.8), bootstrap_interval(measured, 0.99)
    assert wide.low < narrow.low < measured.reported < narrow.high < wide.high


def test_twenty_right_of_twenty_leave_room_for_doubt():
    found = interval(pooled("accuracy", ["a"] * 20, ["a"] * 20))
    assert found == exact_interval(pooled("accuracy", ["a"] * 20, ["a"] * 20))
    assert (found.low, found.high) == pytest.approx((83.157, 100.0), abs=0.001)


def test_mcnemar_is_the_sign_test_on_the_rows_that_one_side_has_right():
    ours = np.array([True] * 9 + [False] * 2 + [True] * 30)
    theirs = np.array([False] * 9 + [True] * 2 + [True] * 30)
    better, worse = mcnemar(ours, theirs)
    assert better == pytest.approx(sum([1, 11, 55]) / 2**11)
    assert worse == pytest.approx(1 - sum([1, 11]) / 2**11)


def test_equal_predictions_are_neither_better_nor_worse():
    outputs, targets = ["a b c", "d e f"], ["a b x", "d y z"]
    for metric in ("accuracy", "macro_f1", "chrf", "bleu"):
        found = compare(metric, outputs, outputs, targets)
        assert (found.gain, found.low, found.high, found.p_better, found.p_worse) == (0.0, 0.0, 0.0, 1.0, 1.0)


def test_swapping_the_sides_swaps_the_answer():
    generator = np.random.default_rng(3)
    targets = generator.choice(LABELS, 60)
    ours, theirs = noisy(generator, targets, 0.8), noisy(generator, targets, 0.5)
    for metric in ("accuracy", "macro_f1"):
        there, back = compare(metric, ours, theirs, list(targets)), compare(metric, theirs, ours, list(targets))
        assert there.gain == pytest.approx(-back.gain)
        assert (there.p_better, there.p_worse) == pytest.approx((back.p_worse, back.p_better), abs=0.003)  # random exchanges differ


@pytest.mark.parametrize("rows", [1, 3, 10, 100])
def test_a_gain_in_every_row_is_as_likely_as_all_of_so_many_coins_on_one_side(rows):
    found = compare("facts_kept", ["x y"] * rows, ["x"] * rows, ["t"] * rows, Wanted(facts=["a: x\nb: y"] * rows))
    assert (found.gain, found.low, found.high) == (50.0, 50.0, 50.0)
    expected = max(0.5**rows, 1 / (RESAMPLES + 1))
    assert (found.p_better, found.p_worse) == (pytest.approx(expected, rel=0.7 if rows == 10 else 0.05), 1.0)


def test_what_is_no_number_shows_nothing():
    nan, known = (from_scores("agreement", np.array([first, 50.0, 60.0])) for first in (np.nan, 40.0))
    for found in (compare_pooled(nan, known), compare_pooled(known, nan)):
        assert (found.p_better, found.p_worse) == (1.0, 1.0)


def test_the_randomization_is_the_one_that_recomputes_the_value_row_by_row():
    generator = np.random.default_rng(8)
    targets = generator.choice(LABELS, 40, p=[0.6, 0.3, 0.1])
    ours, theirs = np.array(noisy(generator, targets, 0.65)), np.array(noisy(generator, targets, 0.5))
    gain, others = summary("macro_f1", ours, targets) - summary("macro_f1", theirs, targets), []
    for _ in range(2000):
        swapped = generator.random(40) < 0.5
        one, other = np.where(swapped, theirs, ours), np.where(swapped, ours, theirs)
        others.append(summary("macro_f1", one, targets) - summary("macro_f1", other, targets))
    found = compare("macro_f1", ours, theirs, targets)
    assert found.p_better == pytest.approx(np.mean(np.array(others) >= gain - 1e-9), abs=0.03)
    assert found.p_worse == pytest.approx(np.mean(np.array(others) <= gain + 1e-9), abs=0.03)


@pytest.mark.parametrize("rows", [2, 4, 8, 12])
def test_few_rows_without_a_difference_are_not_called_better(rows):
    generator = np.random.default_rng(9)
    alarms = 0
    for _ in range(300):
        scores = generator.normal(size=(2, rows))
        alarms += compare_pooled(*(from_scores("chrf", side) for side in scores)).p_better < 0.05
    assert binomtest(alarms, 300, 0.05, alternative="greater").pvalue > 0.01


def test_the_gain_is_the_difference_of_the_reported_values():
    outputs, others = ["the cat sat on the mat", "it rains a lot today"], ["the cat sat down", "it rains a lot now"]
    targets = ["the cat sat on a mat", "it rains a lot today"]
    for metric in ("bleu", "macro_f1", "chrf", "rouge_l", "exact_match"):
        expected = summary(metric, outputs, targets) - summary(metric, others, targets)
        assert compare(metric, outputs, others, targets).gain == pytest.approx(expected, abs=1e-6)


def test_the_macro_f1_bootstrap_is_the_one_that_recomputes_it_row_by_row():
    generator = np.random.default_rng(4)
    targets = generator.choice(LABELS, 60, p=[0.6, 0.3, 0.1])
    ours, theirs = np.array(noisy(generator, targets, 0.7)), np.array(noisy(generator, targets, 0.5))
    draws = (generator.integers(60, size=60) for _ in range(1500))
    gains = [summary("macro_f1", ours[d], targets[d]) - summary("macro_f1", theirs[d], targets[d]) for d in draws]
    found = compare("macro_f1", ours, theirs, targets)
    assert (found.low, found.high) == pytest.approx(np.quantile(gains, [0.025, 0.975]), abs=2.0)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_without_a_difference_small_p_values_are_as_rare_as_they_say(metric):
    generator = np.random.default_rng(5)
    false_alarms = 0
    for _ in range(200):
        targets = generator.choice(LABELS, 60)
        found = compare(metric, noisy(generator, targets, 0.6), noisy(generator, targets, 0.6), targets)
        false_alarms += found.p_better < 0.05
    assert binomtest(false_alarms, 200, 0.05, alternative="greater").pvalue > 0.01


def test_the_same_question_gets_the_same_answer():
    outputs, facts = rows_with_facts(np.random.default_rng(6), 30, 0.5)
    wanted = Wanted(facts=facts)
    assert compare("facts_kept", outputs, outputs[::-1], outputs, wanted) == compare("facts_kept", outputs, outputs[::-1], outputs, wanted)


@pytest.mark.parametrize(("rows", "alpha", "gain"), [(100, 0.01, 9.0), (7, 0.01, 100.0), (6, 0.01, None), (1000, 0.05, 1.0)])
def test_the_smallest_gain_that_a_test_set_can_show(rows, alpha, gain):
    assert smallest_gain(rows, alpha) == (None if gain is None else pytest.approx(gain))


def test_the_smallest_gain_is_shown_and_one_row_less_is_not():
    for rows in (50, 200, 777):
        lost = round(0.01 * rows)
        won = round(smallest_gain(rows) * rows / 100) + lost
        p_values = [binomtest(w, w + lost, alternative="greater").pvalue for w in (won, won - 1)]
        assert p_values[0] < 0.01 <= p_values[1]
