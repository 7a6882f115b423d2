"""The score of settings: the same for the same order of labels, whatever an objective's scale; textbook numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from helpers import plain_model
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_core.backbone import Backbone
from prompt_core.encoded import Encoded
from prompt_core.prompts import PromptState
from prompt_core.tuning.objective import Generation, LabelAnchors
from prompt_core.tuning.score import held_out_score, log_loss


def some_scores(seed: int, rows: int = 40, labels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, labels, generator=generator, dtype=torch.float64)
    targets = torch.randint(labels, (rows,), generator=generator)
    return scores + F.one_hot(targets, labels), targets


@given(st.integers(0, 1000), st.floats(1e-3, 1e3))
@settings(max_examples=50, deadline=None)
def test_the_scale_of_the_scores_does_not_count(seed: int, scale: float) -> None:
    scores, targets = some_scores(seed)
    assert log_loss(scores * scale, targets) == pytest.approx(log_loss(scores, targets), rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_no_temperature_is_much_better_than_the_one_that_was_fitted(seed: int) -> None:
    scores, targets = some_scores(seed)
    tried = [float(F.cross_entropy(scores * 10 ** (power / 50), targets)) for power in range(-100, 100)]
    assert min(tried) - 1e-9 <= log_loss(scores, targets) <= min(tried) + 0.01


def test_where_all_is_right_the_clearer_one_is_better() -> None:
    targets = torch.tensor([0, 1] * 8)
    clear = F.one_hot(targets, 2).double()
    blurred = clear + 0.3 * torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (blurred.argmax(1) == targets).all()
    assert 0 < log_loss(clear, targets) < log_loss(blurred, targets)


def test_scores_that_say_nothing_cost_what_guessing_costs() -> None:
    assert log_loss(torch.zeros(6, 4, dtype=torch.float64), torch.arange(6) % 4) == pytest.approx(torch.log(torch.tensor(4.0)).item())


def test_scores_that_are_not_finite_give_no_finite_score() -> None:
    assert not log_loss(torch.full((4, 2), float("nan"), dtype=torch.float64), torch.zeros(4, dtype=torch.long)) < float("inf")


def test_generation_is_the_mean_over_target_tokens_of_all_folds_without_smoothing(llama: Backbone, llama_folder: str) -> None:
    data = [Encoded((100 + i, 200 + i), (*range(300, 301 + i), 0), False) for i in range(5)]
    prompt = PromptState.of(llama, root=(40, 41))
    folds = [(prompt, Generation(llama, smoothing=0.3), data[:2]), (prompt, Generation(llama, smoothing=0.3), data[2:])]
    model, total, count = plain_model(llama_folder), 0.0, 0
    for example in data:
        ids = torch.tensor([[40, 41, *example.input, *example.target]])
        logits = model(ids).logits[0, -len(example.target) - 1 : -1]
        total += float(F.cross_entropy(logits, torch.tensor(example.target), reduction="sum"))
        count += len(example.target)
    for batch_tokens in (8, 1000):
        score, accuracy = held_out_score(llama, folds, batch_tokens)
        assert score == pytest.approx(total / count, rel=1e-4) and accuracy is None


def test_accuracy_is_over_the_examples_of_all_folds(bert: Backbone) -> None:
    inputs = [(101, 2000 + 37 * i, 102) for i in range(6)]
    anchors = torch.randn(2, bert.hidden_size, generator=torch.Generator().manual_seed(0))
    prompt, objective = PromptState.of(bert), LabelAnchors(bert, anchors, 10.0)
    best = objective.scores_behind(prompt, [Encoded(ids, (), False) for ids in inputs]).argmax(-1).tolist()
    wrong_once = [
        Encoded(ids, (label if number else 1 - label,), False) for number, (ids, label) in enumerate(zip(inputs, best, strict=True))
    ]
    _, accuracy = held_out_score(bert, [(prompt, objective, wrong_once[:2]), (prompt, objective, wrong_once[2:])], 1000)
    assert accuracy == pytest.approx(5 / 6)
