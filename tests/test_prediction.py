"""Prediction: in the order of the inputs, on the base that the prompt was tuned on and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import torch.nn.functional as F
from helpers import a_task, backbone_at, examples, save_tiny

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError
from prompt_core.evaluation.sidebyside import side_by_side
from prompt_core.generation import generate_texts
from prompt_core.inputs import as_fields
from prompt_core.prediction import classify, restore, restore_classifier
from prompt_core.prompts import PromptState, lower
from prompt_core.ready import ReadyPrompt
from prompt_core.tuning import tune
from prompt_core.tuning.build import build_classifier, label_examples
from prompt_core.tuning.objective import LabelAnchors, LabelWords, embed_texts

TRAIN = examples(*[(f"Text number {i} {'good' if i % 2 else 'bad'}", "good" if i % 2 else "bad") for i in range(8)])
TEXTS = ["Text number 5 good", "bad", "A much longer text that says little about anything at all", "good"]


@pytest.fixture(scope="module")
def prompt(llama: Backbone) -> TunedPrompt:
    """A tuned classifier with label words."""
    task = a_task(llama.identity.name, template="Say good or bad. {{ text }}\nIt is", tune={"steps": 4}, prompt={"kind": "soft"})
    return tune(task, TRAIN, None, llama)


@pytest.fixture(scope="module")
def writer(llama: Backbone) -> TunedPrompt:
    """A tuned generator of two fields."""
    task = a_task(
        llama.identity.name, template="Go. {{ text }} {{ more }}\n", objective="generate", tune={"steps": 2}, prompt={"kind": "soft"}
    )
    return tune(task, TRAIN.with_columns(more=pl.lit("x")), None, llama)


def test_predictions_stand_in_the_order_of_the_inputs(llama: Backbone, prompt: TunedPrompt) -> None:
    together = prompt.predict(TEXTS, llama)
    assert together == [prompt.predict([text], llama)[0] for text in TEXTS]
    assert together == prompt.predict([{"text": text, "other": 1} for text in TEXTS], llama)
    assert set(together) <= {"good", "bad"}
    assert prompt.predict([], llama) == []


def test_white_space_and_spelling_that_evaluation_does_not_see_change_nothing(llama: Backbone, writer: TunedPrompt) -> None:
    ready = ReadyPrompt.of(writer, llama)
    known = ready.encode({"text": "caf\u00e9", "more": "true"})
    assert ready.encode({"text": "  cafe\u0301 \n", "more": True}) == known
    assert ready.encode_all([{"text": "cafe\u0301\t", "more": " true"}]) == [known]
    with pytest.raises(PromptmillError, match='input 2: field "more": is not Unicode text'):
        ready.encode_all([{"text": "a", "more": "b"}, {"text": "a", "more": "\ud83d"}])


def test_lowering_a_soft_prompt_changes_no_prediction(llama: Backbone, prompt: TunedPrompt, writer: TunedPrompt) -> None:
    encoding = TaskEncoding(prompt.task, llama)
    inputs = [encoding.encode({"text": text}) for text in TEXTS]
    soft = restore(prompt, encoding, llama)
    assert len(soft.root) == prompt.manifest.tokens
    classifier = restore_classifier(prompt, encoding, llama)
    lowered = lower(llama, soft)
    with torch.no_grad():
        scores = [classifier.scores_behind(p, inputs) for p in (soft, lowered)]
    assert torch.allclose(scores[0], scores[1], atol=1e-4)
    labels = prompt.manifest.labels
    assert (
        classify(llama, classifier, lowered, inputs, labels, 64)
        == classify(llama, classifier, soft, inputs, labels, 8192)
        == prompt.predict(TEXTS, llama)
    )
    encoding = TaskEncoding(writer.task, llama)
    fields = [{"text": text, "more": "y"} for text in TEXTS]
    soft = restore(writer, encoding, llama)
    found = generate_texts(llama, encoding, lower(llama, soft), [encoding.encode(f) for f in fields], writer.manifest.max_new_tokens or 0)
    assert found == writer.predict(fields, llama)


@pytest.mark.parametrize("kind", ["soft", "deep"])
def test_a_label_may_be_said_in_several_ways_which_count_together(llama: Backbone, tmp_path: Path, kind: str) -> None:
    ways = {"good": ["good", "fine stuff"], "bad": ["bad", "awful", "no good"]}
    task = a_task(
        llama.identity.name, template="Say good or bad. {{ text }}\nIt is", tune={"steps": 12}, prompt={"kind": kind}, labels=ways
    )
    prompt = tune(task, TRAIN, None, llama)
    losses = prompt.manifest.tuning.train_loss if prompt.manifest.tuning else ()
    assert losses[-1] < losses[0]  # the loss is that of what predicts
    prompt.save(tmp_path / "p")
    loaded = TunedPrompt.load(tmp_path / "p")
    assert loaded.task.labels == {label: tuple(own) for label, own in ways.items()} and loaded.digest == prompt.digest
    encoding = TaskEncoding(loaded.task, llama)
    inputs, state = [encoding.encode({"text": text}) for text in TEXTS], restore(loaded, encoding, llama)
    apart = [encoding.encode_target(way) for own in ("bad", "good") for way in ways[own]]  # labels stand in order
    with torch.no_grad():
        together = restore_classifier(loaded, encoding, llama).scores_behind(state, inputs)
        each = LabelWords(llama, apart).scores_behind(state, inputs).exp()
    expected = torch.stack([each[:, :3].mean(1), each[:, 3:].mean(1)], 1).log()
    assert torch.allclose(together, expected, atol=1e-4)
    assert loaded.predict(TEXTS, llama) == [loaded.manifest.labels[i] for i in expected.argmax(1).tolist()]


def test_an_encoders_label_starts_between_its_descriptions(bert: Backbone) -> None:
    ways = {"good": ["good", "fine stuff"], "bad": ["bad"]}
    task = a_task(bert.identity.name, tune={"steps": 1}, prompt={"tokens": 2}, labels=ways)
    encoding = TaskEncoding(task, bert)
    classifier = build_classifier(task, encoding, bert, ["bad", "good"])
    texts = [encoding.encode_text(text) for text in ("bad", "good", "fine stuff")]
    bad, good, fine = embed_texts(bert, PromptState.of(bert), texts)
    assert isinstance(classifier, LabelAnchors)
    assert torch.allclose(classifier.anchors, F.normalize(torch.stack([bad, good + fine]), dim=-1), atol=1e-5)
    assert sorted(e.target for e in label_examples(task, encoding, bert, ["bad", "good"])) == [(0,), (1,), (1,)]
    assert set(tune(task, TRAIN, None, bert).predict(TEXTS, bert)) <= {"good", "bad"}


def test_a_loss_over_the_vocabulary_has_one_way_to_say_a_label(llama: Backbone) -> None:
    task = a_task(llama.identity.name, tune={"steps": 1, "loss": "vocabulary"}, labels={"good": ["good", "fine"]})
    with pytest.raises(PromptmillError, match=r"tune.loss: vocabulary learns to say one text for a label, but good has several\. Take"):
        tune(task, TRAIN, None, llama)


class LikePandas(list[str]):
    """What a frame of pandas, which Promptmill does not need, looks like from outside: an iterable of its column names."""

    def iterrows(self) -> None: ...


@pytest.mark.parametrize(
    ("inputs", "finding"),
    [
        ("refund", "inputs: are of type str alone. Put it in a list."),
        ({"text": "refund"}, "inputs: are of type dict alone. Put it in a list."),
        (b"refund", "inputs: are of type bytes alone. Put it in a list."),
        (None, "inputs: are None. Give a list of texts or of mappings"),
        (
            LikePandas(),
            'inputs: are of type LikePandas, which gives its column names. Give frame.to_dict("records").',
        ),
        (["a", None], "input 2: is None, not a text or a mapping of field to text. Give a text."),
        (["a", "b", 5], "input 3: is of type int, not a text or a mapping"),
        ([["a"]], "input 1: is of type list, not a text or a mapping"),
        ([b"a"], "input 1: is of type bytes, not a text or a mapping"),
    ],
    ids=repr,
)
def test_what_holds_no_inputs_is_refused_by_every_method_that_takes_some(
    llama: Backbone, prompt: TunedPrompt, inputs: Any, finding: str
) -> None:
    for ask in (prompt.predict, prompt.answer):
        with pytest.raises(PromptmillError, match=re.escape(finding)):
            ask(inputs, llama)
    with pytest.raises(PromptmillError, match=re.escape(finding)):
        ReadyPrompt.of(prompt, llama).encode_all(inputs)


def test_rows_may_come_from_any_iterable_and_from_a_polars_frame(llama: Backbone, prompt: TunedPrompt) -> None:
    expected, frame = prompt.predict(TEXTS, llama), pl.DataFrame({"other": range(4), "text": TEXTS})
    for given in (iter(TEXTS), (text for text in TEXTS), frame, frame["text"], frame.iter_rows(named=True)):
        assert prompt.predict(given, llama) == expected


def test_progress_ends_with_all_rows(llama: Backbone, prompt: TunedPrompt) -> None:
    seen: list[tuple[int, int]] = []
    prompt.predict(TEXTS, llama, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (4, 4)


def test_the_answers_side_by_side_are_those_of_the_model_and_of_the_prompt(
    llama: Backbone, prompt: TunedPrompt, writer: TunedPrompt
) -> None:
    answers = side_by_side(prompt, {"text": TEXTS[0]}, llama)
    assert set(answers) == {"without", "with"} and answers["with"] == prompt.predict([TEXTS[0]], llama)[0]
    assert side_by_side(writer, {"text": "a", "more": "b"}, llama)["with"] == writer.predict([{"text": "a", "more": "b"}], llama)[0]


def test_another_base_is_refused(tmp_path: Path, prompt: TunedPrompt) -> None:
    other = backbone_at(str(save_tiny("qwen2", tmp_path / "other")))
    with pytest.raises(
        PromptmillError, match=r"prompt t: was tuned on tiny-llama with weights \w{12}, this backbone's are \w{12}. Use the base"
    ):
        prompt.predict(TEXTS, other)


def test_another_tokenizer_is_refused(tmp_path: Path, llama_folder: Path, prompt: TunedPrompt) -> None:
    import shutil

    folder = Path(shutil.copytree(llama_folder, tmp_path / "changed"))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(PromptmillError, match="with tokenizer"):
        prompt.predict(TEXTS, backbone_at(str(folder)))


def test_the_base_is_found_where_it_was_when_the_prompt_was_tuned(tmp_path: Path, llama: Backbone, prompt: TunedPrompt) -> None:
    prompt.save(tmp_path / "p")
    assert TunedPrompt.load(tmp_path / "p").predict(TEXTS) == prompt.predict(TEXTS, llama)


@pytest.mark.parametrize(
    ("row", "finding"),
    [
        ({"text": " "}, 'input 2: task t: template: field "text" is empty. Give it a text.'),
        ({"text": None}, 'input 2: task t: template: field "text" is empty. Give it a text.'),
        ({"txt": "a"}, 'input 2: task t: template: field "text" is not in the input. Did you mean "txt"?'),
    ],
)
def test_a_bad_input_is_named_by_its_number(llama: Backbone, prompt: TunedPrompt, row: dict[str, str | None], finding: str) -> None:
    with pytest.raises(PromptmillError, match=re.escape(finding)):
        prompt.predict(["fine", row], llama)


def test_a_text_where_the_template_has_several_fields_is_refused() -> None:
    assert as_fields(["a"], ["text"]) == [{"text": "a"}]
    with pytest.raises(PromptmillError, match=r"input 1: is a text, but the template has the fields text, more. Give a mapping"):
        as_fields(["a"], ["text", "more"])
