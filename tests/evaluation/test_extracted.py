"""Metrics of extraction: seqeval's F1 of tags, pairs of records counted by hand, and F1 in a paired test."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from helpers import a_task
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2

from prompt_core.evaluation import About, Contender, Rows, evaluate_contenders
from prompt_core.evaluation.extracted import as_judged, entity_counts
from prompt_core.evaluation.metrics import pooled, score, summary
from prompt_core.evaluation.paired import compare
from prompt_core.extraction.spans import entities_json
from prompt_core.extraction.tags import entities_of
from prompt_core.task import TaskSpec

LABELS = ("city", "date")
NAMES = ["O", "B-city", "I-city", "B-date", "I-date"]
TEXT = "abcdef"
ORDER = {"type": "object", "properties": {"order": {"type": "string"}, "items": {"type": "array"}}, "required": ["order"]}


def record_task(**parts: Any) -> TaskSpec:
    return a_task("smollm2", template="{{ text }}\n", objective="extract", extract={"schema": ORDER}, **parts)


def spoken(tags: list[int]) -> str:
    """Tags of the letters of TEXT as the JSON of their entities."""
    return entities_json(entities_of(tags, [(i, i + 1) for i in range(len(tags))], LABELS), TEXT)


rows = st.lists(st.tuples(*[st.lists(st.integers(0, 4), min_size=6, max_size=6)] * 2), min_size=1, max_size=6)


@given(rows)
def test_entity_f1_is_seqevals_strict_f1(pairs: list[tuple[list[int], list[int]]]) -> None:
    outputs, targets = [[spoken(pair[side]) for pair in pairs] for side in (0, 1)]
    if not any(json.loads(text) for text in (*outputs, *targets)):
        assert summary("entity_f1", outputs, targets) == 100.0  # nothing to find and nothing found
        return
    tags = [[[NAMES[tag] for tag in pair[side]] for pair in pairs] for side in (0, 1)]
    expected = f1_score(tags[1], tags[0], mode="strict", scheme=IOB2, zero_division=0)
    assert summary("entity_f1", outputs, targets) == pytest.approx(100 * expected)


@given(rows, st.data())
def test_the_value_of_a_resample_is_the_f1_of_its_rows(pairs: list[tuple[list[int], list[int]]], data: st.DataObject) -> None:
    outputs, targets = [[spoken(pair[side]) for pair in pairs] for side in (0, 1)]
    drawn = data.draw(st.lists(st.integers(0, len(pairs) - 1), min_size=1, max_size=8))
    measured = pooled("entity_f1", outputs, targets)
    found = float(measured.value(measured.rows[drawn].sum(axis=0)))
    assert found == pytest.approx(summary("entity_f1", [outputs[i] for i in drawn], [targets[i] for i in drawn]))


@pytest.mark.parametrize(
    ("output", "target", "counts"),
    [
        ('{"a": 1, "b": {"c": "x"}}', '{"a": 1, "b": {"c": "x"}}', (2, 2, 2)),
        ('{"a": 1, "b": {"c": "y"}}', '{"a": 1, "b": {"c": "x"}}', (1, 2, 2)),
        ('{"a": 1}', '{"b": 1}', (0, 1, 1)),
        ('{"a": null}', "{}", (0, 0, 0)),
        ('{"a": [{"n": "x", "q": null}, null]}', '{"a": [{"n": "x"}]}', (1, 1, 1)),
        ('{"a": 1}', '{"a": true}', (0, 1, 1)),
        ('{"a": [2, 1, 1]}', '{"a": [1, 2]}', (2, 3, 2)),
        ('{"a": [{"n": "x", "q": 2}]}', '{"a": [{"q": 2, "n": "x"}, {"n": "y", "q": 1}]}', (1, 1, 2)),
        ('[{"n": "x", "q": 1}, {"n": "y", "q": 2}]', '[{"n": "x", "q": 2}, {"n": "y", "q": 1}]', (0, 2, 2)),
        ("", '{"a": 1, "b": 2}', (0, 1, 2)),
        ("", "{}", (0, 1, 0)),
    ],
)
def test_pairs_of_path_and_value_are_counted(output: str, target: str, counts: tuple[int, int, int]) -> None:
    assert entity_counts([output], [target]).tolist() == [list(counts)]


def test_an_output_is_judged_by_what_it_says_and_counts_as_wrong_where_it_cannot_be_read() -> None:
    outputs = ['{"items":[1.0],\n "order":"A"}', '{"items": []}', 'Sure! {"order": "A"}', '{"order": "A"}']
    judged = as_judged(record_task(), outputs)
    assert judged == ['{"order": "A", "items": [1]}', "", "", '{"order": "A"}']
    targets = ['{"order": "A", "items": [1]}', '{"order": "B"}', '{"order": "A"}', '{"order": "B"}']
    assert score("valid_json", judged, targets).tolist() == [100, 0, 0, 100]
    assert score("exact_match", judged, targets).tolist() == [100, 0, 0, 0]
    assert summary("entity_f1", judged, targets) == pytest.approx(100 * 2 * 2 / (5 + 5))


def test_an_evaluation_shows_what_was_written_and_measures_what_it_says() -> None:
    targets = ['{"order": "A"}', '{"order": "B"}'] * 20
    contenders = [
        Contender("zero_shot", "untuned", ["Order A", '{ "order" : "C" }'] * 20),
        Contender("tuned", "tuned", ['{"order":"A"}', '{"order":"B"}'] * 20),
    ]
    found = evaluate_contenders(record_task(), Rows([{"text": "x"}] * 40, targets), contenders, About("0" * 64))
    assert list(found.tuned.metrics) == ["entity_f1", "exact_match", "valid_json"] and found.gate_metric == "entity_f1"
    assert {metric: value.value for metric, value in found.contenders[0].metrics.items()} == {
        "entity_f1": 0,
        "exact_match": 0,
        "valid_json": 50,
    }
    assert [value.value for value in found.tuned.metrics.values()] == [100, 100, 100]
    assert found.verdict.passed
    assert found.samples[0].outputs == {"zero_shot": "Order A", "tuned": '{"order":"A"}'}
    assert found.comparisons["zero_shot"]["entity_f1"].test == "paired randomization test"
    assert found.comparisons["zero_shot"]["valid_json"].test == "exact McNemar test"


def test_a_paired_test_of_f1_shows_a_gain_that_every_row_has_and_none_where_there_is_none() -> None:
    generator = np.random.default_rng(0)
    targets = [spoken([1, 2, 0, 3, 4, 0])] * 60
    half = [spoken([1, 2, 0, 0, 0, 0])] * 60
    found = compare("entity_f1", targets, half, targets)
    assert found.gain == pytest.approx(100 - 200 / 3) and found.p_better < 0.001 and found.low == found.high == pytest.approx(found.gain)
    mixed = [[[targets, half][int(generator.integers(2))][i] for i in range(60)] for _ in range(2)]
    assert compare("entity_f1", mixed[0], mixed[1], targets).p_better > 0.01
