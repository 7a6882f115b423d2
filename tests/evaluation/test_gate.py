"""The gate's rule, case by case, and the evaluation as data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_core.errors import PromptmillError
from prompt_core.evaluation import About, Contender, Evaluation, Rows, Wanted, evaluate_contenders
from prompt_core.task import TaskSpec
from prompt_core.task_file import parse_task

LABELS = ["late", "lost", "refund", "damaged"]
TARGETS = [LABELS[i % 4] for i in range(100)]
INPUTS = [{"text": f"message {i}"} for i in range(100)]


def a_task(**changes: Any) -> TaskSpec:
    data = {"path": "x.csv", "target": "label"}
    fields = {"name": "intent", "backbone": "minilm", "objective": "classify", "template": "{{ text }}", "data": data}
    return parse_task(fields | changes, "intent.yaml", Path())


def right_in(rows: range) -> list[str]:
    """Predictions that are right in these rows only."""
    return [target if i in rows else LABELS[(i + 1) % 4] for i, target in enumerate(TARGETS)]


def evaluated(*contenders: Contender, **changes: Any) -> Evaluation:
    return evaluate_contenders(a_task(**changes), Rows(INPUTS, TARGETS), contenders, About("f" * 64))


TUNED = Contender("tuned", "tuned", right_in(range(80)))


def test_a_shown_gain_over_every_untuned_contender_passes():
    found = evaluated(Contender("label_names", "untuned", right_in(range(60))), TUNED)
    assert found.verdict.passed
    (reason,) = found.verdict.reasons  # the interval: quantiles of a binomial of 100 draws at 0.2
    assert reason.startswith("better than label_names: accuracy +20.0 points [+12.0, +28.0], p < 0.0001 in the exact McNemar test;")
    assert reason.endswith("needed 0 points or more and p below 0.01")


def test_a_gain_below_the_least_one_fails_however_significant():
    found = evaluated(Contender("label_names", "untuned", right_in(range(60))), TUNED, gate={"min_gain": 25})
    assert not found.verdict.passed
    assert found.verdict.reasons[0].startswith("gain over label_names is too small: accuracy +20.0 points")
    assert found.verdict.reasons[0].endswith("needs 25 points or more")


def test_a_gain_that_the_test_does_not_show_fails_and_says_what_could_be_shown():
    found = evaluated(Contender("label_names", "untuned", right_in(range(77))), TUNED)
    assert not found.verdict.passed
    assert found.verdict.reasons[0].startswith("gain over label_names is not shown: accuracy +3.0 points")
    assert "p 0.1250" in found.verdict.reasons[0]
    assert "a gain of 9.0 points or more" in found.verdict.reasons[1]


def test_one_unbeaten_untuned_contender_is_enough_to_fail():
    weak, strong = Contender("label_names", "untuned", right_in(range(40))), Contender("few_shot", "untuned", right_in(range(80)))
    assert not evaluated(weak, strong, TUNED).verdict.passed


@pytest.mark.parametrize("kind", ["rival", "production"])
@pytest.mark.parametrize(("right", "passed"), [(70, True), (80, True), (84, True), (90, False)])
def test_a_rival_and_production_need_not_be_beaten_but_must_not_be_shown_better(kind, right, passed):
    found = evaluated(Contender("label_names", "untuned", right_in(range(40))), Contender("other", kind, right_in(range(right))), TUNED)
    assert found.verdict.passed is passed
    assert found.verdict.reasons[1].startswith("not shown to be worse than other" if passed else "worse than other: accuracy -10.0 points")


def test_without_an_untuned_contender_nothing_is_proven():
    found = evaluated(Contender("production", "production", right_in(range(10))), TUNED)
    assert not found.verdict.passed
    assert "no untuned contender was measured, so that no gain can be shown" in found.verdict.reasons


def test_the_gates_metric_decides_and_the_others_only_inform():
    targets = ["the parcel is late"] * 20
    contenders = [Contender("zero_shot", "untuned", targets), Contender("tuned", "tuned", ["we are sorry, order 7"] * 20)]
    evaluate = {"metrics": ["chrf", "facts_kept"], "must_contain": "facts"}
    for metric, passed in (("chrf", False), ("facts_kept", True)):
        task = a_task(objective="generate", evaluate=evaluate, gate={"metric": metric})
        rows = Rows(INPUTS[:20], targets, Wanted(facts=["order: 7"] * 20))
        found = evaluate_contenders(task, rows, contenders, About("0" * 64))
        assert found.verdict.passed is passed


def test_values_comparisons_and_samples_are_all_there():
    found = evaluated(Contender("label_names", "untuned", right_in(range(60))), TUNED)
    assert (found.task, found.prompt_digest, found.rows, found.smallest_gain) == ("intent", "f" * 64, 100, 9.0)
    assert found.tuned.metrics["accuracy"].value == 80.0
    assert found.tuned.metrics["accuracy"].low < 80.0 < found.tuned.metrics["accuracy"].high
    assert found.comparisons["label_names"]["macro_f1"].test == "paired randomization test"
    assert [sample.input["text"] for sample in found.samples] == [f"message {i}" for i in (0, 12, 25, 37, 50, 62, 75, 87)]
    assert found.samples[-1].outputs == {"label_names": LABELS[0], "tuned": LABELS[0]}


def test_the_table_lines_up_and_holds_every_number():
    lines = evaluated(Contender("label_names", "untuned", right_in(range(60))), TUNED).table().splitlines()
    assert lines[0] == "intent: 100 test rows, prompt ffffffffffff"
    columns = [lines[2].index("accuracy"), lines[2].index("macro_f1")]
    assert [line.split("  ")[0] for line in lines[3:5]] == ["label_names", "tuned"]
    assert lines[4][columns[0] :].startswith("80.0 [70.8, 87.3]")
    assert all(line[column - 1] == " " != line[column] for line in (*lines[2:5], *lines[6:8]) for column in columns)
    assert lines[7].startswith("label_names") and "+20.0 [12.0, 28.0] p < 0.0001" in lines[7]
    assert lines[9] == "gate passed"


def test_markdown_is_two_tables_and_the_verdict():
    text = evaluated(Contender("a|b", "untuned", right_in(range(60))), TUNED).markdown()
    assert "| tuned | 80.0 [70.8, 87.3] |" in text
    assert "| a\\|b |" in text
    assert "**gate passed**" in text
    assert text.count("| --- | --- | --- |") == 2


def test_the_same_inputs_give_the_same_bytes():
    first, second = (evaluated(Contender("label_names", "untuned", right_in(range(60))), TUNED) for _ in range(2))
    assert first.model_dump_json() == second.model_dump_json()


texts = st.text(max_size=20)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(texts, texts, texts, texts), min_size=1, max_size=6))
def test_json_brings_back_the_same_evaluation(rows):
    inputs, targets, before, after = (list(column) for column in zip(*rows, strict=True))
    metrics = ["chrf", "rouge_l", "bleu", "exact_match", "facts_kept"]
    task = a_task(objective="generate", evaluate={"metrics": metrics, "must_contain": "facts"})
    contenders = [Contender("zero_shot", "untuned", before), Contender("tuned", "tuned", after)]
    asked = Rows([{"text": text} for text in inputs], targets, Wanted(facts=inputs))
    found = evaluate_contenders(task, asked, contenders, About("0" * 64))
    assert Evaluation.model_validate_json(found.model_dump_json()) == found


def test_no_test_rows_is_a_mistake_with_a_way_out():
    with pytest.raises(PromptmillError, match=r"task intent: data.test: there are no test rows"):
        evaluate_contenders(a_task(), Rows([], []), [Contender("tuned", "tuned", [])], About("0" * 64))


def test_a_missing_second_or_short_contender_is_refused():
    with pytest.raises(ValueError, match="exactly one tuned"):
        evaluated(Contender("label_names", "untuned", TARGETS))
    with pytest.raises(ValueError, match="different names"):
        evaluated(TUNED, Contender("tuned", "untuned", TARGETS))
    with pytest.raises(ValueError, match="short has 1 rows, there are 100 targets"):
        evaluated(TUNED, Contender("short", "untuned", ["late"]))
