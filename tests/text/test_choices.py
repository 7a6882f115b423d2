"""Which examples a candidate shows: each text once, however many targets it has."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import a_task, examples

from prompt_core.text.candidate import own_candidate
from prompt_core.text.choices import Choices
from prompt_core.text.prompt import EmbeddingModel
from prompt_core.text.spec import Choice

ROWS = examples(*[(f"name[{name}]", f"{name} is a pub, {i}.") for name in "ABCDEFGH" for i in range(5)]).rows(named=True)


@pytest.mark.parametrize("choice", ["random", "diverse", "typical"])
def test_a_text_with_several_targets_is_shown_once(choice: Choice) -> None:
    text = {"demonstrations": 16, "choices": [choice]}
    task = a_task("smollm2", objective="generate", template="{{ text }}\nText:", prompt={"kind": "text"}, text=text)
    features = F.normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), dim=-1).repeat_interleave(5, 0)
    choices = Choices(task, ROWS, features, EmbeddingModel(name="m", weights="w", tokenizer="t"), encoder=False)
    found = choices.with_examples(own_candidate(task))
    shown = [each.fields["text"] for each in found.prompt(task, {row["_id"]: row for row in ROWS}).demonstrations]
    assert len(shown) == 4 == len(set(shown))  # half of the texts
