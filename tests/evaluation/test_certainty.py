"""Calibration, abstention and inputs out of scope, against definitions written out and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from prompt_core.evaluation.certainty import accuracy_by_coverage, certainty, reliability

unit = st.floats(0, 1, width=32)
rows = st.integers(1, 60).flatmap(lambda n: st.tuples(arrays(np.float64, n, elements=unit), arrays(np.bool_, n)))


def probabilities_of(confidence: list[float]) -> np.ndarray:
    return np.array([[c, 1 - c] for c in confidence])


def test_a_perfectly_calibrated_classifier_has_no_error_and_an_overconfident_one_its_excess():
    confidence = [0.8] * 10
    targets = ["a"] * 8 + ["b"] * 2
    found = certainty(probabilities_of(confidence), ["a", "b"], ["a"] * 10, targets, None)
    assert found.ece == pytest.approx(0) and found.in_scope_auroc is None
    assert certainty(probabilities_of([1.0] * 10), ["a", "b"], ["a"] * 10, targets, None).ece == pytest.approx(20.0)


@settings(max_examples=50, deadline=None)
@given(rows)
def test_the_error_is_the_mean_gap_of_the_bins_and_no_row_is_lost(pair):
    confidence, right = pair
    bins = reliability(confidence, right)
    assert sum(each.rows for each in bins) == len(right)
    edges = np.minimum((confidence * 10).astype(int), 9)
    by_hand = sum(abs(confidence[edges == e].sum() - right[edges == e].sum()) for e in range(10)) / len(right)
    found = sum(each.rows * abs(each.confidence - each.accuracy) for each in bins) / len(right)
    assert found == pytest.approx(100 * by_hand, abs=1e-3)


@settings(max_examples=50, deadline=None)
@given(rows)
def test_with_all_rows_answered_the_curve_ends_at_the_accuracy(pair):
    confidence, right = pair
    curve = accuracy_by_coverage(confidence, right)
    assert curve[-1].coverage == 100 and curve[-1].accuracy == pytest.approx(100 * right.mean(), abs=1e-3)
    coverages, confidences = [a.coverage for a in curve], [a.confidence for a in curve]
    assert coverages == sorted(set(coverages)) and confidences == sorted(confidences, reverse=True)


@settings(max_examples=50, deadline=None)
@given(rows, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter_not_even_of_equally_sure_ones(pair, random):
    confidence, right = pair
    order = list(range(len(right)))
    random.shuffle(order)
    found, shuffled = accuracy_by_coverage(confidence, right), accuracy_by_coverage(confidence[order], right[order])
    assert [a.accuracy for a in found] == pytest.approx([a.accuracy for a in shuffled], abs=1e-3)


def test_abstaining_from_the_unsure_rows_helps_where_confidence_means_something():
    confidence = np.linspace(0.5, 1, 100)
    curve = accuracy_by_coverage(confidence, confidence > 0.7)
    assert curve[0].accuracy == 100 and curve[-1].accuracy == pytest.approx(60, abs=1)
    half = next(a for a in curve if a.coverage == 50)
    assert half.confidence == pytest.approx(75, abs=1)


def test_inputs_out_of_scope_are_told_apart_by_the_confidence_in_labels_that_are_in_scope():
    generator = np.random.default_rng(0)
    scores = generator.dirichlet([1, 1, 1], size=80)
    targets = [["a", "b", "oos"][i % 3] for i in range(80)]
    labels = ["a", "b", "oos"]
    predictions = [labels[i] for i in scores.argmax(1)]
    found = certainty(scores, labels, predictions, targets, "oos")
    inside = [target != "oos" for target in targets]
    assert found.in_scope_auroc == pytest.approx(100 * roc_auc_score(inside, scores[:, :2].max(1)), abs=1e-3)
    known = certainty(scores[:, :2], labels[:2], predictions, targets, "oos")  # a label that the prompt was never taught
    assert known.in_scope_auroc == found.in_scope_auroc
    assert certainty(scores, labels, predictions, ["a"] * 80, "oos").in_scope_auroc is None
