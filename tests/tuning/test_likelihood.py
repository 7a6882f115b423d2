"""The head's loss in blocks of rows: value and gradient of the plain cross-entropy over all logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_equal_to_rounding, backbone_at, save_tiny

from prompt_core.backbone import Backbone
from prompt_core.tuning import likelihood
from prompt_core.tuning.likelihood import next_token_losses


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return backbone_at(str(save_tiny("gemma2", tmp_path_factory.mktemp("models") / "gemma2")))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("capped", [False, True])
def test_losses_and_gradients_are_those_of_all_logits_at_once(
    llama: Backbone, gemma: Backbone, monkeypatch: pytest.MonkeyPatch, capped: bool, smoothing: float
) -> None:
    monkeypatch.setattr(likelihood, "_ROWS", 8)
    monkeypatch.setattr(likelihood, "_CACHED", 4)
    backbone = gemma if capped else llama
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(11, backbone.hidden_size, generator=generator).requires_grad_()
    row_of = torch.tensor([0, 10, 3, 3, 3, 7, 5, 0])  # rows without a target, with one and with several
    targets = torch.randint(len(backbone.head_weight), (8,), generator=generator)
    weights = torch.rand(8, generator=generator)
    found = next_token_losses(backbone, states, row_of, targets, smoothing)
    exact = states.detach().double().requires_grad_()
    logits = exact @ backbone.head_weight.double().T
    logits = logits if backbone.logit_cap is None else backbone.logit_cap * torch.tanh(logits / backbone.logit_cap)
    expected = F.cross_entropy(logits[row_of], targets, reduction="none", label_smoothing=smoothing)
    assert_equal_to_rounding(found.double(), expected)
    (gradient,) = torch.autograd.grad((found * weights).sum(), states)
    (plain,) = torch.autograd.grad((expected * weights).sum(), exact)
    assert_equal_to_rounding(gradient.double(), plain)


def test_no_rows_and_no_gradient_are_fine(llama: Backbone, tmp_path: Path) -> None:
    nothing = torch.empty(0, dtype=torch.int64)
    assert len(next_token_losses(llama, torch.empty(0, llama.hidden_size), nothing, nothing)) == 0
    states = torch.randn(3, llama.hidden_size)
    assert not next_token_losses(llama, states, torch.arange(3), torch.arange(3)).requires_grad


def test_one_target_per_row_needs_no_word_of_which_row(llama: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "_ROWS", 8)
    monkeypatch.setattr(likelihood, "_CACHED", 4)
    states = torch.randn(11, llama.hidden_size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.arange(11)
    losses = [next_token_losses(llama, states, row_of, targets) for row_of in (None, torch.arange(11))]
    assert torch.equal(*losses)
    assert torch.equal(*(torch.autograd.grad(loss.sum(), states)[0] for loss in losses))
