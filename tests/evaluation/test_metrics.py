"""Metrics against the libraries that define them, and against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_core.evaluation.metrics import METRICS, corpus_bleu, pooled, score, summary
from prompt_core.evaluation.wanted import Wanted, facts_kept

OUTPUTS = ["Your parcel arrives on Monday.", "", "We are sorry for the delay", "the cat sat on the mat", "x"]
TARGETS = ["Your parcel arrives on Tuesday.", "Thank you.", "We are sorry for the delay", "a cat sat on a mat today", "y z"]

labels = st.sampled_from(["late", "lost", "damaged", "refund"])
words = st.lists(st.sampled_from(["your", "parcel", "is", "late", "on", "Monday", "."]), max_size=9).map(" ".join)


def test_accuracy_is_100_where_the_label_is_right():
    assert score("accuracy", ["a", "b", "c"], ["a", "b", "d"]).tolist() == [100.0, 100.0, 0.0]


def test_exact_match_forgives_whitespace_and_nothing_else():
    assert score("exact_match", [" a  b\n", "A b", "a b."], ["a b"] * 3).tolist() == [100.0, 0.0, 0.0]


def test_chrf_is_sacrebleus_sentence_score():
    from sacrebleu import sentence_chrf

    assert score("chrf", OUTPUTS, TARGETS).tolist() == [sentence_chrf(o, [t]).score for o, t in zip(OUTPUTS, TARGETS, strict=True)]


def test_rouge_l_is_rouge_scores_f_measure_on_english():
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    expected = [100 * scorer.score(t, o)["rougeL"].fmeasure for o, t in zip(OUTPUTS, TARGETS, strict=True)]
    assert score("rouge_l", OUTPUTS, TARGETS).tolist() == expected


def test_rouge_l_sees_words_of_every_script():
    assert score("rouge_l", ["το δέμα έφτασε", "荷物が届いた", "über"], ["το δέμα χάθηκε", "荷物が届いた", "uber"]) == pytest.approx(
        [66.667, 100, 0], abs=0.01
    )


def test_bleu_of_a_row_is_sacrebleus_sentence_score_with_effective_order():
    from sacrebleu import sentence_bleu

    expected = [sentence_bleu(o, [t], use_effective_order=True).score for o, t in zip(OUTPUTS, TARGETS, strict=True)]
    assert score("bleu", OUTPUTS, TARGETS).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=6))
def test_reported_bleu_is_sacrebleus_corpus_score(pairs):
    outputs, targets = [o for o, _ in pairs], [t for _, t in pairs]
    assert summary("bleu", outputs, targets) == pytest.approx(corpus_bleu(outputs, [[t] for t in targets]), abs=1e-9)


def test_corpus_bleu_takes_several_references_and_as_many_as_a_row_has():
    from sacrebleu import corpus_bleu as sacrebleu

    references = [["the cat sat on the mat", "a cat is on the mat"], ["it rains a lot today"]]
    outputs = ["the cat is on the mat", "it rains a lot now"]
    assert corpus_bleu(outputs, references) == sacrebleu(outputs, [[r[0] for r in references], [references[0][1], None]]).score
    assert corpus_bleu(outputs, references) > corpus_bleu(outputs, [r[:1] for r in references])


def test_corpus_bleu_refuses_a_row_without_a_reference():
    with pytest.raises(ValueError, match="at least one reference"):
        corpus_bleu(["a", "b"], [["a"], []])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.one_of(labels, st.just("no such label")), labels), min_size=1, max_size=30))
def test_macro_f1_is_sklearns_over_the_labels_of_the_targets(pairs):
    from sklearn.metrics import f1_score

    outputs, targets = [o for o, _ in pairs], [t for _, t in pairs]
    expected = 100 * f1_score(targets, outputs, labels=sorted(set(targets)), average="macro", zero_division=0)
    assert summary("macro_f1", outputs, targets) == pytest.approx(expected, abs=1e-9)


def test_macro_f1_has_no_score_per_row():
    with pytest.raises(ValueError, match="whole test set"):
        score("macro_f1", ["a"], ["a"])


def test_facts_kept_is_the_share_of_values_found_whatever_case_and_whitespace():
    facts = ["tracking: PX 4471\nday: Monday\nagent: Ana Ruiz", "name:  Green Man \n\nfood: French"]
    outputs = ["px 4471 arrives on MONDAY", "The Green\nMan serves french food"]
    assert facts_kept(outputs, facts) == pytest.approx([200 / 3, 100.0])


def test_a_number_is_not_kept_inside_a_longer_one():
    assert facts_kept(["14 days, 4.50 euro", "4 days.", "it costs £4, today"], ["n: 4"] * 3).tolist() == [0.0, 100.0, 100.0]
    assert facts_kept(["it is -4 or −4", "3-4 days", "it is -4"], ["n: 4", "n: 4", "n: -4"]).tolist() == [0.0, 100.0, 100.0]
    assert facts_kept(["At the Cafe\u0301"], ["place: Café"]).tolist() == [100.0]


def test_a_value_may_hold_colons_and_a_line_without_one_is_a_value():
    assert facts_kept(["from 14:30 at Kiosk"], ["time: 14:30\nKiosk"]).tolist() == [100.0]


def test_a_row_without_facts_has_lost_none():
    assert facts_kept(["anything"], ["\n"]).tolist() == [100.0]


@pytest.mark.parametrize("metric", [m for m in METRICS if m not in ("bleu", "macro_f1", "entity_f1", "agreement")])
def test_the_reported_value_of_a_row_metric_is_the_mean_of_its_scores(metric):
    wanted = Wanted(facts=["day: Monday"] * len(OUTPUTS))
    assert summary(metric, OUTPUTS, TARGETS, wanted) == pytest.approx(score(metric, OUTPUTS, TARGETS, wanted).mean())


@pytest.mark.parametrize("metric", [m for m in METRICS if m != "agreement"])  # that is measured beside the texts
def test_pooled_values_hold_for_any_part_of_the_rows(metric):
    outputs, targets = [*OUTPUTS, *TARGETS], [*TARGETS, *TARGETS]
    part, facts = [1, 4, 6, 7, 7], ["day: Monday"] * len(targets)
    *chosen, stated = [[texts[i] for i in part] for texts in (outputs, targets, facts)]
    measured = pooled(metric, outputs, targets, Wanted(facts=facts))
    assert float(measured.value(measured.rows[part].sum(axis=0))) == pytest.approx(summary(metric, *chosen, Wanted(facts=stated)))


@pytest.mark.parametrize(("outputs", "targets", "facts"), [(["a"], ["a", "b"], None), ([], [], None), (["a"], ["a"], ["x: 1", "y: 2"])])
def test_lengths_that_differ_are_refused(outputs, targets, facts):
    with pytest.raises(ValueError, match="as many predictions as targets"):
        summary("accuracy", outputs, targets, Wanted(facts=facts))


def test_facts_kept_without_facts_is_refused():
    with pytest.raises(ValueError, match="needs the facts"):
        summary("facts_kept", ["a"], ["a"])


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30)), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_any_text_scores_between_0_and_100(rows):
    outputs, targets, facts = (list(texts) for texts in zip(*rows, strict=True))
    for metric in (m for m in METRICS if m != "agreement"):
        assert -1e-9 <= summary(metric, outputs, targets, Wanted(facts=facts)) <= 100 + 1e-9
        assert np.isfinite(pooled(metric, outputs, targets, Wanted(facts=facts)).rows).all()
