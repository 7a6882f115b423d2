"""Pictures decode, are small, and say what they should; how they look was judged by eye."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from prompt_core.evaluation import About, Contender, Rows, evaluate_contenders
from prompt_core.evaluation.glyphs import numbered
from prompt_core.evaluation.plots import LARGEST_URI, _confusion_counts, _most_confused, confusion, intervals, loss_curve
from prompt_core.task_file import parse_task


def size_of(uri: str) -> tuple[int, int]:
    """Width and height of a picture that is small enough and whole."""
    kind, _, content = uri.partition(",")
    assert kind == "data:image/png;base64" and len(uri) < LARGEST_URI
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    picture.load()
    return picture.size


def with_errors(labels: list[str], each: int, share: float) -> tuple[list[str], list[str]]:
    """Targets and predictions; a wrong one names the next label."""
    wrong = np.random.default_rng(0).random(each * len(labels)) < share
    targets = labels * each
    return targets, [labels[(labels.index(t) + 1) % len(labels)] if w else t for t, w in zip(targets, wrong, strict=True)]


def test_a_loss_curve_with_validation_without_it_and_of_one_step():
    steps = list(range(1, 81))
    assert size_of(loss_curve(steps, [3 / s for s in steps], [10, 20, 80], [2.0, 1.0, 1.1]))[0] > 900
    assert size_of(loss_curve(steps, [3 / s for s in steps], [], []))[0] > 900
    assert size_of(loss_curve([1], [2.0], [1], [2.0]))[0] > 900
    assert size_of(loss_curve(steps, [3 / s for s in steps], [10, 20], [None, 1.0]))[0] > 900  # the first was no finite number
    assert size_of(loss_curve([1], [2.0], [1], [None]))[0] > 900


@pytest.mark.parametrize("classes", [2, 20, 150])
def test_a_confusion_picture_of_few_and_many_labels_is_sharp_enough_to_read(classes):
    labels = [f"a_rather_long_label_name_{i}" for i in range(classes)]
    targets, predictions = with_errors(labels, 8, 0.2)
    assert min(size_of(confusion(targets, predictions, labels))) > 500


def test_label_names_are_text_not_formulas_and_strange_predictions_have_a_place():
    assert size_of(confusion(["$a_{$", "b"], ["b", "neither"], ["$a_{$", "b"]))
    counts, names = _confusion_counts(["a", "b"], ["b", "neither"], ["a", "b"])
    assert names == ["a", "b", "(no label)"]
    assert counts.tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]


@pytest.mark.filterwarnings("error")  # matplotlib warns of every sign that its font has not
def test_labels_in_signs_that_cannot_be_drawn_stand_as_numbers_that_are_explained():
    labels = ["été", "退款", "\U0001f69a happy", "a\nb"]
    assert size_of(confusion(labels, labels[::-1], labels))
    assert _confusion_counts(labels, labels, labels)[1] == ["été", "#2", "#3 happy", "#4 ab"]
    assert numbered(labels) == "#2 退款, #3 \U0001f69a happy, #4 a\nb"
    assert numbered(["été", "plain"]) == ""


def test_labels_that_are_confused_with_each_other_stand_together_worst_first():
    counts = np.diag([9, 9, 9, 9])
    counts[0, 2], counts[3, 1], counts[1, 3] = 1, 4, 2
    shown, names = _most_confused(counts, ["a", "b", "c", "d"])
    assert names == ["b", "d", "a", "c"]
    assert shown[1, 0] == 4 and shown[2, 3] == 1


def test_many_labels_are_merged_and_no_row_is_lost():
    labels = [f"l{i}" for i in range(150)]
    targets, predictions = with_errors(labels, 6, 0.3)
    shown, names = _most_confused(*_confusion_counts(targets, predictions, labels))
    assert names[-1] == "126 others" and len(names) == 25
    assert shown.sum() == len(targets)


def test_intervals_has_a_panel_per_metric():
    fields = {"name": "t", "backbone": "minilm", "objective": "classify", "template": "{{ x }}", "data": {"path": "x.csv", "target": "y"}}
    targets = ["a", "b"] * 10
    contenders = [Contender("label_names", "untuned", ["a"] * 20), Contender("tuned", "tuned", targets)]
    widths = []
    for metrics in (["accuracy"], ["accuracy", "macro_f1"]):
        task = parse_task({**fields, "evaluate": {"metrics": metrics}}, "t.yaml", Path())
        widths.append(size_of(intervals(evaluate_contenders(task, Rows([{"x": "."}] * 20, targets), contenders, About("0" * 64))))[0])
    assert widths[1] > widths[0]


def test_drawing_leaves_no_global_figure_behind():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    loss_curve([1, 2], [2.0, 1.0], [2], [1.0])
    assert plt.get_fignums() == before
