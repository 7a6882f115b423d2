"""Several right texts, facts and patterns, schemas: what an output is measured against besides its target."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import sacrebleu
from helpers import a_task, examples
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_core.backbone import Backbone
from prompt_core.criteria import compiled
from prompt_core.data import Splits
from prompt_core.data.clean import clean
from prompt_core.errors import PromptmillError
from prompt_core.evaluation import Wanted, bootstrap_interval, facts_kept, pooled, score, summary
from prompt_core.evaluation.evaluate import evaluate
from prompt_core.evaluation.wanted import wanted_of
from prompt_core.extraction.schema import RecordForm
from prompt_core.task_file import parse_task
from prompt_core.tuning import tune

words = st.lists(st.sampled_from(["your", "parcel", "is", "late", "today", "."]), min_size=1, max_size=8).map(" ".join)
rows_of_texts = st.lists(st.tuples(words, st.lists(words, min_size=1, max_size=3)), min_size=1, max_size=6)
SCHEMA = {"type": "object", "properties": {"day": {"type": "string"}}, "required": ["day"], "additionalProperties": False}


@settings(max_examples=25, deadline=None)
@given(rows_of_texts)
def test_bleu_and_chrf_of_several_references_are_sacrebleus(rows):
    outputs, references = (list(column) for column in zip(*rows, strict=True))
    most = max(map(len, references))
    streams = [[row[i] if i < len(row) else None for row in references] for i in range(most)]
    wanted, targets = Wanted(references=references), [row[0] for row in references]
    assert summary("bleu", outputs, targets, wanted) == pytest.approx(
        sacrebleu.BLEU(force=True).corpus_score(outputs, streams).score, abs=1e-6
    )
    expected = [sacrebleu.sentence_chrf(o, r).score for o, r in zip(outputs, references, strict=True)]
    assert score("chrf", outputs, targets, wanted) == pytest.approx(expected)


@settings(max_examples=25, deadline=None)
@given(rows_of_texts)
def test_one_more_right_text_never_makes_an_output_worse(rows):
    outputs, references = (list(column) for column in zip(*rows, strict=True))
    targets = [row[0] for row in references]
    for metric in ("exact_match", "rouge_l", "chrf"):
        assert (score(metric, outputs, targets, Wanted(references=references)) >= score(metric, outputs, targets) - 1e-9).all()


def test_given_strings_and_expressions_must_and_must_not_be_there():
    outputs = ["Heron: order 7 is late", "order seven is late", "HERON: sorry, order 12"]
    contains, omits = ["heron", r"/order \d+/"], ["sorry"]
    assert facts_kept(outputs, None, contains, omits).tolist() == pytest.approx([100.0, 100 / 3, 200 / 3])
    assert facts_kept(outputs[:1], ["n: 8\nday: late"], contains, omits).tolist() == [80.0]


@settings(max_examples=25, deadline=None)
@given(st.text(min_size=1, max_size=8).filter(lambda text: text.strip("/").strip()))
def test_a_text_is_looked_for_as_it_stands_whatever_its_signs(text):
    if not (len(text) > 2 and text[0] == text[-1] == "/"):
        assert compiled(text).search(f"before {text} after")


@pytest.mark.parametrize(
    ("evaluate", "objective", "finding"),
    [
        ({"contains": ["/a(/"]}, "generate", "evaluate.contains.0: '/a(/' is no regular expression"),
        ({"omits": ["/ /"]}, "generate", "evaluate.omits.0: a pattern is empty"),
        ({"omits": ["/sorry|regret/i"]}, "generate", "'/sorry|regret/i' would be looked for as it stands; write an expression whose case"),
        (
            {"metrics": ["facts_kept"]},
            "generate",
            "'facts_kept' needs evaluate.must_contain, the column with the facts, or evaluate.contains",
        ),
        ({"metrics": ["valid_json"]}, "generate", "metric 'valid_json' and evaluate.schema go together"),
        ({"schema": SCHEMA}, "generate", "metric 'valid_json' and evaluate.schema go together"),
        ({"schema": {"type": 3}, "metrics": ["valid_json"]}, "generate", "is not a JSON schema"),
        ({"out_of_scope": "oos"}, "generate", "evaluate.out_of_scope is for objective: classify"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_the_task_file(evaluate, objective, finding):
    with pytest.raises(PromptmillError, match=re.escape(finding)):
        a_task(objective=objective, evaluate=evaluate)


def test_generated_json_is_valid_where_it_fits_the_schema(tmp_path: Path):
    (tmp_path / "s.json").write_text('{"type": "object", "required": ["day"]}', encoding="utf-8")
    content = {
        "name": "t",
        "backbone": "smollm2",
        "objective": "generate",
        "template": "{{ text }}",
        "data": {"path": "a.csv", "target": "label"},
        "evaluate": {"metrics": ["valid_json", "chrf"], "schema": "s.json"},
    }
    task = parse_task(content, "t.yaml", tmp_path)
    outputs = ['{"day": "Monday"}', '{"d": 1}', "Monday", '{"day": NaN}']
    assert score("valid_json", outputs, outputs, wanted_of(task, [])).tolist() == [100.0, 0.0, 0.0, 0.0]
    again = parse_task(task.model_dump(mode="json"), "manifest", Path())
    assert again.evaluate.json_schema == {"type": "object", "required": ["day"]}
    assert RecordForm(again.evaluate.json_schema).read(outputs[0]) == {"day": "Monday"}


def test_the_columns_that_an_evaluation_reads_come_with_the_data():
    task = a_task(objective="generate", evaluate={"references": ["second"], "slices": ["country"]})
    frame = pl.DataFrame({"text": ["a"], "country": ["de"], "second": [None], "label": ["b"]}, schema_overrides={"second": pl.String})
    cleaned, _ = clean(frame, task)
    assert set(cleaned.columns) == {"_id", "text", "country", "second", "label"}
    assert wanted_of(task, cleaned.rows(named=True)).references == [["b"]]  # an empty reference is none


def test_several_answers_to_one_input_are_references_and_it_is_asked_once(llama: Backbone):
    rows = examples(*((f"Where is parcel {i % 4}?", f"In depot {i}") for i in range(12)))
    splits = Splits(train=examples(("Where is it?", "Here")), validation=rows[:0], test=rows)
    settings = {"evaluate": {"max_new_tokens": 4, "metrics": ["bleu"], "few_shot": 1}, "tune": {"steps": 1, "max_tokens": 32}}
    task = a_task(llama.identity.name, template="Say. {{ text }}\n", objective="generate", **settings)
    prompt = tune(task, splits.train, None, llama)
    evaluation = evaluate(task, prompt, splits, llama)
    assert evaluation.rows == 4
    inputs = list(dict.fromkeys(rows["text"]))
    outputs = prompt.predict(inputs, llama)
    references = [rows.filter(pl.col("text") == text)["label"].to_list() for text in inputs]
    expected = summary("bleu", outputs, [row[0] for row in references], Wanted(references=references))
    assert evaluation.tuned.metrics["bleu"].value == pytest.approx(expected, abs=1e-5)


def test_rows_out_of_scope_may_be_test_rows_alone_and_are_told_apart(minilm: Backbone):
    known = [
        (f"{ask} {thing}", kind)
        for kind, ask in (("track", "Where is my"), ("refund", "Pay me back for the"))
        for thing in ("box", "bag", "van", "lid", "map", "pen")
    ]
    strange = [(f"Sing about a {thing}", "other") for thing in ("whale", "moon", "tree", "song")]
    splits = Splits(train=examples(*known[::2]), validation=examples(), test=examples(*known[1::2], *strange))
    task = a_task("minilm", evaluate={"out_of_scope": "other"}, tune={"steps": 8, "learning_rate": 0.03})
    prompt = tune(task, splits.train, None, minilm)
    found = evaluate(task, prompt, splits, minilm).classified
    assert found is not None and set(found.certainty) == {"label_names", "linear_probe", "tuned"}
    assert all(each.in_scope_auroc is not None for each in found.certainty.values())
    assert found.certainty["tuned"].in_scope_auroc > 80
    assert found.certainty["tuned"].answered[-1].accuracy == pytest.approx(
        summary("accuracy", prompt.predict(splits.test["text"].to_list(), minilm), splits.test["label"].to_list()), abs=1e-3
    )


def test_intervals_hold_for_corpus_bleu_of_several_references():
    references = [["a b c d e", "a b c d"], ["x y z u v"]] * 10
    measured = pooled("bleu", ["a b c d", "x y z v u"] * 10, ["a b c d e", "x y z u v"] * 10, Wanted(references=references))
    around = bootstrap_interval(measured)
    assert around.low <= measured.reported <= around.high and np.isfinite(measured.rows).all()
