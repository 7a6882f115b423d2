"""Calibration: after it no label is preferred before an input is read, in the artifact as in the objective."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from helpers import a_task, assert_equal_to_rounding, backbone_at, examples, save_tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.encoded import Encoded
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError
from prompt_core.prediction import label_scores, restore, restore_classifier
from prompt_core.tuning import tune
from prompt_core.tuning.calibration import mean_log_chances

WORDS = ("parcel", "letter", "invoice", "driver", "door", "street", "label", "scanner")
TRAIN = examples(*[(f"The {word} is {'late' if i % 2 else 'broken'}", "late" if i % 2 else "broken") for i, word in enumerate(WORDS)])
MORE = [f"Our {word} came back" for word in WORDS]


def chances_of(prompt: TunedPrompt, backbone: Backbone, texts: list[str], biased: bool = False) -> Tensor:
    encoding = TaskEncoding(prompt.task, backbone)
    classifier = restore_classifier(prompt, encoding, backbone)
    if biased:
        classifier.label_bias = None
    inputs = [encoding.encode({"text": text}) for text in texts]
    return label_scores(backbone, classifier, restore(prompt, encoding, backbone), inputs, 2, 8192).log_softmax(-1)


def tuned(backbone: Backbone, folder: Path, unlabelled: str | None = None, **spec: Any) -> TunedPrompt:
    data = {"path": "-", "target": "label", "unlabelled": unlabelled, "test": 0.05}
    template = "Is it late or broken? {{ text }}\nIt is" if backbone.generates else "{{ text }}"
    task = a_task(backbone.identity.name, template=template, folder=folder, data=data, tune={"steps": 3, "calibrate": True, **spec})
    return tune(task, TRAIN, None, backbone)


@pytest.mark.parametrize("loss", ["label_set", "vocabulary"])
@pytest.mark.parametrize("more", [False, True])
def test_a_calibrated_classifier_has_no_favourite(tmp_path: Path, llama: Backbone, loss: str, more: bool) -> None:
    pl.DataFrame({"text": MORE, "other": WORDS}).write_csv(tmp_path / "more.csv")
    prompt = tuned(llama, tmp_path, "more.csv" if more else None, loss=loss)
    prompt.save(tmp_path / "p")
    prompt, texts = TunedPrompt.load(tmp_path / "p"), [*TRAIN["text"], *(MORE if more else [])]
    before, after = (chances_of(prompt, llama, texts, biased) for biased in (True, False))
    assert_equal_to_rounding(prompt.tensors["label_bias"], before.mean(0))
    assert_equal_to_rounding(after.mean(0)[0], after.mean(0)[1])
    assert float((after.exp().mean(0) - 0.5).abs().max()) < float((before.exp().mean(0) - 0.5).abs().max())
    assert (prompt.manifest.data.unlabelled_rows, prompt.manifest.data.unlabelled is not None) == (8 * more, more)
    assert prompt.manifest.task["data"]["path"] == "-" and "more.csv" not in prompt.manifest.canonical().decode()


def test_an_encoders_anchors_are_calibrated_in_the_same_way(tmp_path: Path, bert: Backbone) -> None:
    prompt = tuned(bert, tmp_path)
    encoded = [*TRAIN["text"], "broken", "late"]  # the descriptions are examples too
    assert_equal_to_rounding(prompt.tensors["label_bias"], chances_of(prompt, bert, encoded, biased=True).mean(0))


def test_a_long_unlabelled_input_is_cut_to_the_positions_that_prompt_and_labels_leave(tmp_path: Path) -> None:
    pl.DataFrame({"text": [*MORE, "came back late " * 200]}).write_csv(tmp_path / "more.csv")
    gpt2 = backbone_at(str(save_tiny("gpt2", tmp_path / "gpt2")))  # whose positions are a table
    assert tuned(gpt2, tmp_path, "more.csv").manifest.data.unlabelled_rows == 9


def test_other_unlabelled_inputs_are_another_digest(tmp_path: Path, llama: Backbone) -> None:
    for name, texts in (("one", MORE), ("same", MORE[::-1]), ("other", MORE[1:])):
        pl.DataFrame({"text": texts}).write_parquet(tmp_path / f"{name}.parquet")
    one, same, other = (tuned(llama, tmp_path, f"{name}.parquet").manifest.data.unlabelled for name in ("one", "same", "other"))
    assert one == same != other


def test_unlabelled_inputs_that_cannot_be_read_are_one_line(tmp_path: Path, llama: Backbone) -> None:
    (tmp_path / "empty.jsonl").write_text('{"text": " "}\n')
    (tmp_path / "wrong.jsonl").write_text('{"texts": "a"}\n')
    for name, finding in (
        ("missing.csv", r"task t: data.unlabelled: there is no file"),
        ("wrong.jsonl", r'task t: template: column "text" is not in .*wrong.jsonl \(columns: texts\)'),
        ("empty.jsonl", r"task t: data.unlabelled: every row has an empty field. Fill them in"),
    ):
        with pytest.raises(PromptmillError, match=finding):
            tuned(llama, tmp_path, name)


rows = st.lists(st.lists(st.floats(-8, 8), min_size=3, max_size=3), min_size=1, max_size=12)


@given(rows, st.lists(st.floats(-5, 5), min_size=3, max_size=3), st.integers(1, 40))
@settings(deadline=None)
def test_a_constant_preference_is_taken_away_in_any_packing(scores: list[list[float]], favour: list[float], budget: int) -> None:
    inputs = [Encoded((number,), (), False) for number in range(len(scores))]
    table = torch.tensor(scores)

    def calibrated(table: Tensor, budget: int) -> Tensor:
        bias = mean_log_chances(lambda batch: table[[e.input[0] for e in batch]], inputs, lambda e: 7, budget)
        return (table - bias).log_softmax(-1)

    plain, favoured = calibrated(table, 1000), calibrated(table + torch.tensor(favour), budget)
    assert float((favoured - plain).abs().max()) < 1e-4
    assert float(plain.mean(0).max() - plain.mean(0).min()) < 1e-4
