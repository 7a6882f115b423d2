"""The report: whole, without anything from elsewhere, and safe whatever the data says."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers import a_task, examples

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.data import Splits
from prompt_core.evaluation import Evaluation, render_report, write_report
from prompt_core.evaluation.evaluate import evaluate
from prompt_core.evaluation.wording import wording_changes
from prompt_core.text.prompt import TextPrompt
from prompt_core.tuning import tune

_VOID = {"meta", "img", "line", "br", "link", "input"}
_LOADS = {"src", "href", "srcset", "action", "data", "poster", "background"}
ATTACK = "<script>alert('x')</script> \"><img src=http://evil.example/x>"


class Page(HTMLParser):
    """Sections, whatever a browser would load, and whether all elements are closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.loaded: list[str] = []
        self.elements: Counter[str] = Counter()
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.elements[tag] += 1
        given = dict(attributes)
        self.sections += [given["id"]] if tag == "section" else []
        self.loaded += [value for name, value in given.items() if name in _LOADS]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag


def read(page: str) -> Page:
    """The page, after the checks that hold for every one."""
    found = Page(page)
    assert found.open == [] and found.elements["html"] == found.elements["h1"] == 1
    assert all(value.startswith("data:image/png;base64,") for value in found.loaded)
    assert not re.search(r"@import|url\(|<script|<link|<iframe", page)
    assert found.elements["script"] == 0 and "prefers-color-scheme: dark" in page and "width=device-width" in page
    return found


ROWS = [(f"The {thing} is {state} {ATTACK}", kind) for state, kind in (("late", "a"), ("broken", "b<i>")) for thing in "uvwxyz"]
SPLITS = Splits(train=examples(*ROWS[::2]), validation=examples(*ROWS[1::6]), test=examples(*ROWS[1::2]))


def tuned_and_evaluated(backbone: Backbone, splits: Splits = SPLITS, **parts: Any) -> tuple[TunedPrompt, Evaluation]:
    task = a_task(backbone.identity.name, tune={"steps": 2, "max_tokens": 64, "validate_every": 1}, **parts)
    prompt = tune(task, splits.train, splits.validation, backbone)
    return prompt, evaluate(task, prompt, splits, backbone)


def test_a_classifiers_report_has_every_section_and_loads_nothing(bert: Backbone) -> None:
    prompt, evaluation = tuned_and_evaluated(bert, evaluate={"slices": ["label"]}, description=ATTACK)
    page = render_report(evaluation, prompt)
    found = read(page)
    expected = ["verdict", "contenders", "slices", "classes", "confidence", "cases", "samples", "loss", "cost", "lineage"]
    assert found.sections == [name for name in expected if name != "cases" or evaluation.cases]
    assert len(found.loaded) == 4  # confusion, calibration, abstention, loss
    assert prompt.digest in page and prompt.manifest.backbone.weights in page
    assert all(reason.split(":")[0] in page for reason in evaluation.verdict.reasons)
    assert render_report(evaluation, prompt) == page


def test_a_report_says_what_was_learned_from_without_labels(bert: Backbone, tmp_path: Path) -> None:
    examples(*((f"The {thing} came", "") for thing in "abcdefgh")).select("text").write_csv(tmp_path / "more.csv")
    data = {"path": "-", "target": "label", "unlabelled": "more.csv", "test": 0.05}
    task = a_task(bert.identity.name, folder=tmp_path, data=data, tune={"steps": 2, "max_tokens": 64, "self_training": 1})
    prompt = tune(task, SPLITS.train, None, bert)
    page = render_report(evaluate(task, prompt, SPLITS, bert), prompt)
    read(page)
    assert prompt.manifest.self_training and prompt.manifest.self_training.summary().startswith("round 1 of 1 kept, ")
    assert prompt.manifest.self_training.summary() in page


def test_a_generators_report_shows_the_outputs_that_changed_most_side_by_side(llama: Backbone) -> None:
    rows = examples(*((f"Where is parcel {i}?", f"In depot {i % 3}") for i in range(12)))
    splits = Splits(train=rows[:8], validation=rows[:0], test=rows[8:])
    evaluate_part = {"max_new_tokens": 6, "contains": ["depot"], "metrics": ["chrf", "facts_kept"]}
    prompt, evaluation = tuned_and_evaluated(llama, splits, objective="generate", template="Say it. {{ text }}\n", evaluate=evaluate_part)
    found = read(render_report(evaluation, prompt))
    assert {"contenders", "cases", "samples", "cost"} <= set(found.sections) and not {"classes", "confidence"} & set(found.sections)
    assert evaluation.before == "zero_shot"
    assert all(case.before != case.after for case in evaluation.cases)
    likeness = [case.likeness for case in evaluation.cases]
    assert likeness == sorted(likeness)  # the least alike first


def test_two_wordings_are_compared_word_by_word(llama: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt, evaluation = tuned_and_evaluated(llama, template="Sort. {{ text }}\nKind:")

    def worded(template: str) -> TunedPrompt:
        update = {"kind": "text", "text": TextPrompt(template=template), "tuning": None}
        return TunedPrompt(prompt.manifest.model_copy(update=update), {})

    new, live = worded("Sort the message. {{ text }}\nKind:"), worded("Sort. {{ text }}\nType:")
    page = render_report(evaluation, new, live)
    assert "wording" in read(page).sections
    assert "<ins> the message</ins>" in page and "<del>Type</del><ins>Kind</ins>" in page
    assert "".join(text for kind, text in wording_changes(new, live) if kind != "removed") == new.manifest.text.page(new.task)
    assert "".join(text for kind, text in wording_changes(new, live) if kind != "added") == live.manifest.text.page(live.task)
    assert wording_changes(prompt, live) == []


def test_a_report_is_written_whole_in_place_of_the_old_one(bert: Backbone, tmp_path: Path) -> None:
    prompt, evaluation = tuned_and_evaluated(bert)
    (tmp_path / "report.html").write_text("old", encoding="utf-8")
    write_report(tmp_path / "report.html", evaluation, prompt)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    read((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_an_evaluation_of_an_earlier_version_has_a_report_too(bert: Backbone) -> None:
    prompt, evaluation = tuned_and_evaluated(bert)
    content = evaluation.model_dump(mode="json")
    for added in ("power", "classified", "slices", "before", "cases", "leaked", "cost", "round_trips", "seconds"):
        del content[added]
    found = read(render_report(Evaluation.model_validate(content), prompt))
    assert found.sections == ["verdict", "contenders", "samples", "loss", "cost", "lineage"]
