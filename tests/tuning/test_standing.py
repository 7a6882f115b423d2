"""The step of one size: loss and gradients of every batch are those of a pass that holds that batch alone."""

from __future__ import annotations

import random

import pytest
import torch
from helpers import assert_equal_to_rounding
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.encoded import Encoded
from prompt_core.prompts import SoftPrompt, Tree, hidden_states
from prompt_core.tuning.objective import Generation
from prompt_core.tuning.standing import StandingStep


def batch_of(examples: int, seed: int) -> list[Encoded]:
    draw = random.Random(seed)
    texts = [[draw.randrange(200) for _ in range(draw.randint(2, 9))] for _ in range(examples)]
    return [Encoded(tuple(text[: len(text) // 2]), tuple(text[len(text) // 2 :]), False) for text in texts]


def prompts_for(backbone: Backbone) -> list[SoftPrompt]:
    generator = torch.Generator().manual_seed(0)
    return [SoftPrompt(backbone, torch.randn(rows, backbone.hidden_size, generator=generator)) for rows in (3, 5)]


def plain(backbone: Backbone, prompts: list[SoftPrompt], batches: list[list[Encoded]]) -> tuple[Tensor, list[Tensor]]:
    objective = Generation(backbone)
    losses = []
    for prompt, batch in zip(prompts, batches, strict=True):
        (states,) = hidden_states(backbone, [Tree(prompt.state(), *objective.segments(batch))])
        losses.append(objective.loss(states, batch) / sum(map(objective.weight, batch)))
    return torch.stack(losses).detach(), list(torch.autograd.grad(torch.stack(losses).sum(), [p.embeddings for p in prompts]))


def test_batches_of_any_size_give_what_they_give_alone(llama: Backbone) -> None:
    prompts = prompts_for(llama)
    step = StandingStep(llama, prompts, tokens=90, examples=9, targets=40, compiled=False)
    for sizes in ((4, 2), (1, 1), (3, 6)):
        batches = [batch_of(size, seed=10 * size + number) for number, size in enumerate(sizes)]
        losses, gradients = plain(llama, prompts, batches)
        for prompt in prompts:
            prompt.zero_grad()  # as an optimizer does
        assert_equal_to_rounding(step(batches), losses)
        for prompt, expected in zip(prompts, gradients, strict=True):
            assert prompt.embeddings.grad is not None
            assert_equal_to_rounding(prompt.embeddings.grad, expected)


def test_the_compiler_takes_the_model_once(llama: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.fx.GraphModule] = []

    def listening(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        compiled.append(graph)
        return graph

    torch.compiler.reset()
    monkeypatch.setitem(vars(llama), "_compiled", torch.compile(llama._base, backend=listening, dynamic=False))
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    prompts = prompts_for(llama)
    step = StandingStep(llama, prompts, tokens=90, examples=9, targets=40)
    for sizes in ((4, 2), (1, 1), (3, 6)):
        batches = [batch_of(size, seed=10 * size + number) for number, size in enumerate(sizes)]
        losses, gradients = plain(llama, prompts, batches)
        assert_equal_to_rounding(step(batches), losses)
        for prompt, expected in zip(prompts, gradients, strict=True):
            assert prompt.embeddings.grad is not None
            assert_equal_to_rounding(prompt.embeddings.grad, expected)
    assert len(compiled) == 1


def test_what_exceeds_the_size_is_refused(llama: Backbone) -> None:
    prompts = prompts_for(llama)
    with pytest.raises(ValueError, match="target tokens: this step has room for 3"):
        StandingStep(llama, prompts, tokens=90, examples=9, targets=3, compiled=False)([batch_of(4, 0), batch_of(2, 1)])
    with pytest.raises(ValueError, match="this forest has room for"):
        StandingStep(llama, prompts, tokens=12, examples=9, targets=40, compiled=False)([batch_of(4, 0), batch_of(2, 1)])
