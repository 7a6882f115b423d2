"""The model card: what a reader must know, and no text of the examples."""

from __future__ import annotations

import re

import yaml
from export_builders import PAIRS, published
from helpers import examples

from prompt_core.backbone import Backbone
from prompt_core.data import Splits
from prompt_core.evaluation.evaluate import evaluate
from prompt_core.export import Published
from prompt_core.export.card import model_card


def test_a_card_names_base_results_limits_and_use_and_quotes_no_example(llama: Backbone) -> None:
    settings = {"tune": {"steps": 2, "max_tokens": 32}, "evaluate": {"max_new_tokens": 4, "few_shot": 0, "slices": ["label"]}}
    made = published(llama, prompt={"kind": "soft"}, description="Answers | briefly", owner="team:desk", version=3, **settings)
    rows = examples(*PAIRS)
    evaluation = evaluate(made.prompt.task, made.prompt, Splits(train=rows[:4], validation=rows[:0], test=rows[4:]), llama)
    card = model_card(Published(made.prompt, 3, evaluation.model_dump(mode="json")))
    front, _, body = card.removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(front) == {"base_model": "tiny-llama", "library_name": "promptmill"}
    assert re.findall(r"^#+ (.*)$", body, re.MULTILINE) == ["t@3", "Data", "Results", "Use", "Limits"]
    assert made.prompt.digest in body and "Answers | briefly" in body and "Answered for by team:desk." in body
    assert "On 4 test rows; the gate did not pass." in body and "| zero_shot |" in body and evaluation.power in body
    assert not any(text in body for text, _ in PAIRS)


def test_a_card_of_an_evaluation_in_another_form_says_so(llama: Backbone) -> None:
    assert "was recorded in another form" in model_card(published(llama, prompt={"kind": "soft"}))
