"""Objectives in a packed batch: the losses, scores and gradients of each example alone, computed as in a textbook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_equal_to_rounding, behind_cache, behind_rows, plain_model, random_ids, random_prefix
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.encoding import Encoded
from prompt_core.prompts import DeepPrefix, Prompt, PromptState, SoftPrompt, Tree, hidden_states
from prompt_core.tuning.objective import Generation, LabelAnchors, LabelWords, Objective, embed_texts


def encoded(input_lengths: tuple[int, ...], target_lengths: tuple[int, ...]) -> list[Encoded]:
    inputs, targets = random_ids(*input_lengths), random_ids(*target_lengths, seed=5)
    return [Encoded(tuple(i.tolist()), tuple(t.tolist()), False) for i, t in zip(inputs, targets, strict=True)]


def a_prompt(kind: str, backbone: Backbone) -> Prompt:
    return (
        SoftPrompt(backbone, backbone.embed(random_ids(6, seed=3)[0]))
        if kind == "soft"
        else DeepPrefix(backbone, *random_prefix(backbone, 6))
    )


def loss_behind(backbone: Backbone, prompt: Prompt, objective: Objective, examples: list[Encoded]) -> Tensor:
    (states,) = hidden_states(backbone, [Tree(prompt.state(), *objective.segments(examples))])
    return objective.loss(states, examples)


def likelihood(model: Any, prompt: list[Tensor], ids: tuple[int, ...], target: tuple[int, ...]) -> Tensor:
    """Log-likelihood of the target after the input alone, token by token."""
    sequence = torch.tensor(ids + target[:-1])
    hidden = behind_rows(model, prompt[0], sequence) if len(prompt) == 1 else behind_cache(model, prompt[0], prompt[1], sequence)
    chances = model.lm_head(hidden).log_softmax(-1)[len(ids) - 1 :]
    return chances[torch.arange(len(target)), torch.tensor(target)].sum()


def parts(prompt: Prompt) -> list[Tensor]:
    return [tensor.clone().requires_grad_() for tensor in prompt.tensors().values()]


@pytest.mark.parametrize("kind", ["soft", "deep"])
def test_generation_has_the_loss_and_gradients_of_each_example_alone(llama: Backbone, llama_folder: Path, kind: str) -> None:
    model, prompt, batch = plain_model(llama_folder), a_prompt(kind, llama), encoded((5, 1, 9), (4, 1, 3))
    loss = loss_behind(llama, prompt, Generation(llama), batch)
    loss.backward()
    alone = parts(prompt)
    expected = -sum(likelihood(model, alone, e.input, e.target) for e in batch)
    expected.backward()
    assert_equal_to_rounding(loss, expected)
    for parameter, tensor in zip(prompt.parameters(), alone, strict=True):
        assert parameter.grad is not None and tensor.grad is not None
        assert_equal_to_rounding(parameter.grad, tensor.grad)


@pytest.mark.parametrize("kind", ["soft", "deep"])
def test_label_words_score_as_each_input_with_each_label_alone(llama: Backbone, llama_folder: Path, kind: str) -> None:
    model, prompt, batch = plain_model(llama_folder), a_prompt(kind, llama), encoded((5, 1, 9), (1, 1, 1))
    words = [tuple(ids.tolist()) for ids in random_ids(2, 4, 1, seed=9)]
    inputs = [e.input for e in batch]
    scores = LabelWords(llama, words, normalised=False).scores_behind(prompt.state(), batch)
    alone = parts(prompt)
    expected = torch.stack([torch.stack([likelihood(model, alone, ids, label) for label in words]) for ids in inputs])
    assert_equal_to_rounding(scores, expected)
    scores.logsumexp(-1).sum().backward()
    expected.logsumexp(-1).sum().backward()
    for parameter, tensor in zip(prompt.parameters(), alone, strict=True):
        assert parameter.grad is not None and tensor.grad is not None
        assert_equal_to_rounding(parameter.grad, tensor.grad)


def test_label_anchors_score_the_cosine_of_each_text_alone(bert: Backbone, bert_folder: Path) -> None:
    model, texts = plain_model(bert_folder, causal=False), random_ids(5, 1, 9)
    anchors = torch.randn(4, bert.hidden_size, generator=torch.Generator().manual_seed(0))
    scores = LabelAnchors(bert, anchors, scale=20.0).scores_behind(PromptState.of(bert), encoded((5, 1, 9), (1, 1, 1)))
    pooled = torch.stack([model(input_ids=ids[None]).last_hidden_state[0].mean(0) for ids in texts])
    assert_equal_to_rounding(scores / 20, F.cosine_similarity(pooled[:, None], anchors[None], dim=-1))


def test_an_embedding_is_that_of_the_text_alone_and_of_unit_length(minilm: Backbone) -> None:
    texts = [tuple(ids.tolist()) for ids in random_ids(3, 12, 7)]
    together = embed_texts(minilm, PromptState.of(minilm), texts)
    assert_equal_to_rounding(together, torch.cat([embed_texts(minilm, PromptState.of(minilm), [ids]) for ids in texts]))
    assert_equal_to_rounding(together.norm(dim=-1), torch.ones(3))
