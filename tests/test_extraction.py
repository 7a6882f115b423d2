"""Extraction end to end: encoders learn to tag, models that write learn a schema, and both are evaluated, kept and used."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from click.testing import CliRunner
from encoder_decoders import save_encoder_decoder
from helpers import a_task, backbone_at, examples

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.cli import main
from prompt_core.data import Splits, clean, split
from prompt_core.errors import PromptmillError
from prompt_core.evaluation.evaluate import evaluate
from prompt_core.evaluation.sidebyside import side_by_side
from prompt_core.task import TaskSpec
from prompt_core.tuning import tune

CITIES = ["Lyon", "Oslo", "Porto", "Turin", "Ghent", "Malmo", "Leeds", "Basel", "Bilbao", "Aarhus", "Graz", "Bergen", "Brno", "Lille"]
MONTHS = ["January", "March", "April", "May", "June", "July", "August", "October"]
SENTENCES = [
    "My parcel {order} was due in {city} on {date}.",
    "Where is order {order}? I live in {city}.",
    "On {date} nobody in {city} opened the door.",
    "Please send {order} to {city} before {date}.",
    "I wrote to you about {order} and got no answer.",
    "Nothing has come, and I am angry.",
    "{city} says that {order} left on {date}.",
]
ORDER = {
    "type": "object",
    "required": ["order", "city"],
    "additionalProperties": False,
    "properties": {"order": {"type": "string"}, "city": {"type": ["string", "null"]}, "count": {"type": "integer"}},
}
RECORDS = {"objective": "extract", "extract": {"schema": ORDER}, "template": "Read the order. {{ text }}\n"}


def messages(count: int) -> list[tuple[str, str]]:
    """Made-up messages with their entities: orders, cities and dates."""
    draw = random.Random(0)
    rows = []
    for number in range(count):
        values = {
            "order": f"{draw.choice('ABHKX')}{draw.choice('ABHKX')}-{draw.randrange(100, 9999)}",
            "city": draw.choice(CITIES),
            "date": f"{draw.randrange(1, 29)} {draw.choice(MONTHS)}",
        }
        sentence = SENTENCES[number % len(SENTENCES)]
        named = [{"text": values[label], "label": label} for label in re.findall(r"{(\w+)}", sentence)]
        rows.append((sentence.format(**values) + f" ({number})", json.dumps(named)))
    return rows


def orders(count: int) -> list[tuple[str, str]]:
    """Made-up orders with what they say, keys in any order."""
    draw = random.Random(0)
    rows = []
    for number in range(count):
        order, city, some = f"{draw.choice('ABHKX')}-{draw.randrange(100, 999)}", draw.choice(CITIES), draw.randrange(1, 9)
        rows.append((f"Number {number}: {some} lamps to {city}, order {order}.", json.dumps({"count": some, "city": city, "order": order})))
    return rows


def splits_of(task: TaskSpec, rows: list[tuple[str, str]]) -> Splits:
    frame, _ = clean(pl.DataFrame(rows, schema=["text", "label"], orient="row"), task)
    return split(frame, task)


def a_tagger(backbone: Backbone, **tune_settings: Any) -> TaskSpec:
    data = {"path": "examples.csv", "target": "label", "near_duplicate": 1.0}
    return a_task(backbone.identity.name, objective="extract", data=data, tune=tune_settings)


@pytest.fixture(scope="module")
def tagger(bert: Backbone) -> TunedPrompt:
    """A tagger on a tiny encoder, hardly tuned."""
    task = a_tagger(bert, steps=30, learning_rate=0.1)
    splits = splits_of(task, messages(60))
    return tune(task, splits.train, splits.validation, bert)


def test_an_encoder_learns_to_tag_better_than_what_it_has_seen(minilm: Backbone) -> None:
    task = a_tagger(minilm, steps=40)
    splits = splits_of(task, messages(120))
    prompt = tune(task, splits.train, splits.validation, minilm)
    found = evaluate(task, prompt, splits, minilm)
    assert [(result.name, result.kind) for result in found.contenders] == [
        ("seen_entities", "untuned"),
        ("linear_tagger", "rival"),
        ("tuned", "tuned"),
    ]
    assert found.tuned.metrics["entity_f1"].value >= 90 > found.contenders[0].metrics["entity_f1"].value + 10
    assert found.verdict.passed, found.table()
    text = "  The box XK-123 left Lyon on 3 May,\nI was told."
    entities = json.loads(prompt.predict([text], minilm)[0])
    assert [(text[e["start"] : e["end"]], e["text"], e["label"]) for e in entities] == [
        ("XK-123", "XK-123", "order"),
        ("Lyon", "Lyon", "city"),
        ("3 May", "3 May", "date"),
    ]


def test_a_tagger_is_the_same_for_the_same_seed_and_after_it_was_kept(tmp_path: Path, bert: Backbone, tagger: TunedPrompt) -> None:
    task = a_tagger(bert, steps=30, learning_rate=0.1)
    splits = splits_of(task, messages(60))
    assert tune(task, splits.train, splits.validation, bert).digest == tagger.digest
    assert tagger.manifest.labels == ("city", "date", "order")
    assert tagger.tensors["tag_weights"].shape == (7, 32) and tagger.tensors["tag_bias"].shape == (7,)
    assert tagger.manifest.entities is not None and tagger.manifest.entities.found > 50 and tagger.manifest.entities.lost == 0
    tagger.save(tmp_path / "p")
    kept = TunedPrompt.load(tmp_path / "p")
    texts = [text for text, _ in messages(20)]
    answers = kept.predict(texts, bert)
    assert answers == tagger.predict(texts, bert) == [tagger.predict([text], bert)[0] for text in texts]
    assert any(json.loads(answer) for answer in answers)


def test_offsets_are_those_of_the_text_as_it_was_given(bert: Backbone, tagger: TunedPrompt) -> None:
    texts = [text.replace("a", "\u00e1") for text, _ in messages(20)]
    answers = [json.loads(answer) for answer in tagger.predict(texts, bert)]
    assert any(answers)
    for given in ([f" \n{text}\t" for text in texts], [unicodedata.normalize("NFD", text) for text in texts]):
        found = [json.loads(answer) for answer in tagger.predict(given, bert)]
        for text, own, plain in zip(given, found, answers, strict=True):
            assert [(unicodedata.normalize("NFC", e["text"]), e["label"]) for e in own] == [(e["text"], e["label"]) for e in plain]
            assert all(text[e["start"] : e["end"]] == e["text"] for e in own)


def test_a_taggers_answers_side_by_side_are_without_and_with_the_prompt(bert: Backbone, tagger: TunedPrompt) -> None:
    answers = side_by_side(tagger, {"text": "In Lyon on 3 May"}, bert)
    assert answers["with"] == tagger.predict(["In Lyon on 3 May"], bert)[0]
    assert isinstance(json.loads(answers["without"]), list)


@pytest.mark.parametrize(
    ("tensors", "finding"),
    [
        (
            {"tag_bias": torch.zeros(7)},
            "holds ['keys', 'tag_bias', 'values'], a deep prompt has ['keys', 'tag_bias', 'tag_weights', 'values']",
        ),
        (
            {"tag_bias": torch.zeros(7), "tag_weights": torch.zeros(5, 32)},
            "tensor tag_weights is float32 [5, 32], the manifest says 7 tags",
        ),
        ({"tag_bias": torch.zeros(7, 1), "tag_weights": torch.zeros(7, 32)}, "tensor tag_bias is float32 [7, 1], the manifest says 7 tags"),
        ({"tag_bias": torch.full((7,), torch.nan), "tag_weights": torch.zeros(7, 32)}, "tensor tag_bias has values that are not finite"),
        ({"tag_bias": torch.zeros(7), "tag_weights": torch.zeros(7, 32), "anchors": torch.zeros(3, 32)}, "holds ['anchors', 'keys'"),
    ],
)
def test_a_tagger_that_does_not_fit_its_manifest_is_refused(
    tmp_path: Path, tagger: TunedPrompt, tensors: dict[str, torch.Tensor], finding: str
) -> None:
    kept = {name: tensor for name, tensor in tagger.tensors.items() if not name.startswith("tag_")}
    TunedPrompt(tagger.manifest, kept | tensors).save(tmp_path / "p")
    with pytest.raises(PromptmillError, match=re.escape(finding)):
        TunedPrompt.load(tmp_path / "p")


def test_training_rows_without_any_entity_are_refused(bert: Backbone) -> None:
    task = a_tagger(bert)
    splits = splits_of(task, [(f"Nothing {n}", "[]") for n in range(20)])
    with pytest.raises(PromptmillError, match=r"task t: data.target: has no entity in any training row. Add examples that have some."):
        tune(task, splits.train, splits.validation, bert)


@pytest.mark.parametrize("target", ["Lyon", "[3]", '[{"text": "Lyon"}]', "3"])
def test_a_frame_that_was_not_prepared_is_one_clear_line(bert: Backbone, target: str) -> None:
    with pytest.raises(PromptmillError, match=r"task t: data.target: has a row that is no list of entities. Give frames as"):
        tune(a_tagger(bert), examples(("In Lyon", target)), None, bert)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_models_that_write_are_compared_with_themselves_untuned(tmp_path: Path, llama: Backbone, family: str) -> None:
    backbone = llama if family == "llama" else backbone_at(str(save_encoder_decoder("t5", tmp_path / "t5")))
    task = a_task(backbone.identity.name, tune={"steps": 2, "max_tokens": 128}, evaluate={"few_shot": 1, "max_new_tokens": 4}, **RECORDS)
    splits = splits_of(task, orders(20))
    assert list(json.loads(splits.train["label"][0])) == ["order", "city", "count"]  # as the schema has them
    prompt = tune(task, splits.train, splits.validation, backbone)
    found = evaluate(task, prompt, splits, backbone)
    assert [(result.name, result.kind) for result in found.contenders] == [
        ("zero_shot", "untuned"),
        ("few_shot", "untuned"),
        ("tuned", "tuned"),
    ]
    assert list(found.tuned.metrics) == ["entity_f1", "exact_match", "valid_json"]
    assert prompt.manifest.labels == () and prompt.manifest.entities is None
    prompt.save(tmp_path / "p")
    assert TunedPrompt.load(tmp_path / "p").task.record_schema == ORDER
    assert prompt.predict(["Number 3: 1 lamp to Oslo."], backbone) == [
        side_by_side(prompt, {"text": "Number 3: 1 lamp to Oslo."}, backbone)["with"]
    ]


@pytest.mark.slow
def test_smollm2_learns_to_write_json_of_a_schema(smollm2: Backbone) -> None:
    task = a_task("smollm2", tune={"steps": 10, "batch_examples": 6, "learning_rate": 0.02}, evaluate={"few_shot": 0}, **RECORDS)
    splits = splits_of(task, orders(30))
    prompt = tune(task, splits.train, None, smollm2)
    found = evaluate(task, prompt, Splits(splits.train, splits.validation, splits.test.head(6)), smollm2)
    untuned, tuned = ({metric: value.value for metric, value in result.metrics.items()} for result in found.contenders)
    assert untuned["valid_json"] <= 20 and tuned["valid_json"] >= 80
    assert tuned["entity_f1"] >= 70 > untuned["entity_f1"]


def test_the_command_line_goes_from_a_file_of_entities_to_a_table_of_them(tmp_path: Path, bert_folder: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": text, "entities": json.loads(target)} for text, target in messages(40)]
    (tmp_path / "messages.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = {
        "name": "parcels",
        "backbone": {"name": str(bert_folder), "dtype": "float32"},
        "data": {"path": "messages.jsonl", "target": "entities", "near_duplicate": 1.0},
        "objective": "extract",
        "template": "{{ text }}",
        "tune": {"steps": 3},
    }
    (tmp_path / "parcels.yaml").write_text(json.dumps(content))
    tuned = CliRunner().invoke(main, ["tune", "parcels.yaml", "--out", "p"])
    assert tuned.exit_code == 0 and re.search(r"entities +\d+, 0 of them widened to whole tokens, 0 lost", tuned.output), tuned.output
    evaluated = CliRunner().invoke(main, ["evaluate", "parcels.yaml", "p"])
    assert evaluated.exit_code == 1 and "seen_entities" in evaluated.output and "linear_tagger" in evaluated.output, evaluated.output
    rows[3]["entities"].append({"start": 0, "end": 900, "label": "city"})
    (tmp_path / "messages.jsonl").write_text("\n".join(map(json.dumps, rows)))
    refused = CliRunner().invoke(main, ["tune", "parcels.yaml"])
    assert refused.exit_code == 2
    assert 'Error: task parcels: data.target: row 4 of column "entities" entity' in refused.output
    assert "outside of its text of" in refused.output and refused.output.count("\n") == 1
