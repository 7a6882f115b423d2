"""Token tags in a packed batch: losses and gradients of each text alone, and answers that are never half an entity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import a_task, assert_equal_to_rounding, encoder_behind_cache, plain_model, random_prefix

from prompt_core.backbone import Backbone
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError
from prompt_core.extraction.tags import IGNORED
from prompt_core.prompts import DeepPrefix, Tree, hidden_states
from prompt_core.tuning.tags import Tagged, TokenTags, answer_of, tagged

LABELS = ("city", "date")
SOLVED = [
    ("My box left Lyon on 3 May", '[{"text": "Lyon", "label": "city"}, {"text": "3 May", "label": "date"}]'),
    ("Nothing came", "[]"),
    ("Bergen", '[{"text": "Bergen", "label": "city"}]'),
]


def examples_of(backbone: Backbone, solved: list[tuple[str, str]] = SOLVED, **parts: Any) -> list[Tagged]:
    encoding = TaskEncoding(a_task(objective="extract", **parts), backbone)
    return [tagged(encoding.locate({"text": text}), target, LABELS, "here") for text, target in solved]


def test_the_loss_and_its_gradients_are_those_of_each_text_alone(bert: Backbone, bert_folder: Path) -> None:
    model, batch = plain_model(bert_folder, causal=False), examples_of(bert)
    prompt, objective = DeepPrefix(bert, *random_prefix(bert, 6)), TokenTags(bert, LABELS)
    torch.nn.init.normal_(objective.tag_weights, generator=torch.Generator().manual_seed(2))
    (states,) = hidden_states(bert, [Tree(prompt.state(), *objective.segments(batch))])
    loss = objective.loss(states, batch)
    loss.backward()
    alone = {name: tensor.clone().requires_grad_() for name, tensor in (prompt.tensors() | objective.tensors()).items()}
    expected = torch.tensor(0.0)
    for example in batch:
        hidden = encoder_behind_cache(model, alone["keys"], alone["values"], torch.tensor(example.input))
        chances = (hidden @ alone["tag_weights"].T + alone["tag_bias"]).log_softmax(-1)
        expected = expected - sum(chances[i, tag] for i, tag in enumerate(example.target) if tag != IGNORED)
    expected.backward()
    assert_equal_to_rounding(loss, expected)
    for parameter, tensor in zip([*prompt.parameters(), *objective.parameters()], alone.values(), strict=True):
        assert parameter.grad is not None and tensor.grad is not None
        assert_equal_to_rounding(parameter.grad, tensor.grad)


def test_only_the_tokens_of_the_text_count(bert: Backbone) -> None:
    bare, framed = examples_of(bert), examples_of(bert, template="{{ text }} (a message)")
    objective = TokenTags(bert, LABELS)
    for one, other in zip(bare, framed, strict=True):
        assert len(other.input) > len(one.input) == len(one.target)
        assert [tag for tag in one.target if tag != IGNORED] == [tag for tag in other.target if tag != IGNORED]
        assert objective.weight(one) == objective.weight(other) == sum(place is not None for place in one.places)
    tags = torch.tensor([tag for e in framed for tag in e.target])
    states = torch.randn(len(tags), bert.hidden_size)
    expected = F.cross_entropy(torch.zeros((tags != IGNORED).sum(), 5), tags[tags != IGNORED], reduction="sum")
    assert_equal_to_rounding(objective.loss(states, framed), expected)


def perfect(example: Tagged) -> torch.Tensor:
    """Scores of a tagger that makes no mistake, and of one that sees an entity in whatever teaches nothing."""
    tags = torch.tensor([2 if tag == IGNORED else tag for tag in example.target])
    return F.one_hot(tags, 5).float()


def test_what_was_tagged_is_answered(bert: Backbone) -> None:
    answers = [json.loads(answer_of(perfect(example), example, LABELS)) for example in examples_of(bert)]
    assert answers[0] == [
        {"start": 12, "end": 16, "label": "city", "text": "Lyon"},
        {"start": 20, "end": 25, "label": "date", "text": "3 May"},
    ]
    assert answers[1] == []


@pytest.mark.parametrize("side", ["end", "start"])
def test_an_entity_that_the_limit_cuts_is_lost_whole_and_counted(bert: Backbone, side: str) -> None:
    words = ["late"] * 8
    text = " ".join(["On 3 May", *words, "in New York"])
    solved = [(text, '[{"text": "3 May", "label": "date"}, {"text": "New York", "label": "city"}]')]
    limit = 15 if side == "end" else 14  # of 14 words, [CLS] and [SEP]: "York" is cut at the end, "On 3" at the start
    (example,) = examples_of(bert, solved, tune={"max_tokens": limit, "truncate": side})
    assert example.truncated and (example.entities, example.rounded, example.lost) == (2, 0, 1)
    assert sum(tag == IGNORED for tag in example.target) == 2 + 1  # [CLS], [SEP] and the half of an entity that is still there
    halves = perfect(example)
    halves[[i for i, tag in enumerate(example.target) if tag == IGNORED], 1 if side == "end" else 3] = 9.0
    answered = json.loads(answer_of(halves, example, LABELS))
    assert [found["text"] for found in answered] == (["3 May"] if side == "end" else ["New York"])


def test_a_target_that_does_not_fit_is_one_clear_line(bert: Backbone) -> None:
    with pytest.raises(PromptmillError, match=r'here: label "person" has no training example. Add some.'):
        examples_of(bert, [("Ann", '[{"text": "Ann", "label": "person"}]')])
    with pytest.raises(PromptmillError, match=r"which is not in the text. Correct the row."):
        examples_of(bert, [("Ann", '[{"text": "Bob", "label": "person"}]')])
