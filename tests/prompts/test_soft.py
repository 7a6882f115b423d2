"""A soft prompt in a packed row: the hidden states and gradients of each example alone behind the same rows."""

from __future__ import annotations

from pathlib import Path

import torch
from helpers import assert_equal_to_rounding, behind_rows, plain_model, random_ids, states_behind

from prompt_core.backbone import Backbone
from prompt_core.prompts import DeepPrefix, SoftPrompt, lower


def test_every_example_sees_the_prompt_and_itself_alone(llama: Backbone, llama_folder: Path) -> None:
    model, texts = plain_model(llama_folder), random_ids(5, 1, 9)
    rows = model.get_input_embeddings()(random_ids(6, seed=3)[0])
    found = states_behind(llama, SoftPrompt(llama, rows), texts)
    assert_equal_to_rounding(found, [behind_rows(model, rows, ids) for ids in texts])


def test_a_branch_sees_its_parent_and_not_its_sibling(llama: Backbone, llama_folder: Path) -> None:
    model, (text, one, other) = plain_model(llama_folder), random_ids(5, 2, 3)
    rows = model.get_input_embeddings()(random_ids(4, seed=3)[0])
    found = states_behind(llama, SoftPrompt(llama, rows), [text, one, other], [-1, 0, 0])
    for states, branch in zip(found[1:], (one, other), strict=True):
        assert_equal_to_rounding(states, behind_rows(model, rows, torch.cat([text, branch]))[len(text) :])


def test_gradients_are_the_sum_over_the_examples(llama: Backbone, llama_folder: Path) -> None:
    model, texts = plain_model(llama_folder), random_ids(5, 1, 9)
    rows = model.get_input_embeddings()(random_ids(6, seed=3)[0])
    prompt = SoftPrompt(llama, rows)
    weights = [torch.randn(len(ids), 32, generator=torch.Generator().manual_seed(len(ids))) for ids in texts]
    sum((states * w).sum() for states, w in zip(states_behind(llama, prompt, texts), weights, strict=True)).backward()
    alone = rows.clone().requires_grad_()
    for ids, w in zip(texts, weights, strict=True):
        (behind_rows(model, alone, ids) * w).sum().backward()
    assert prompt.embeddings.grad is not None and alone.grad is not None
    assert_equal_to_rounding(prompt.embeddings.grad, alone.grad)


def test_lowering_changes_no_hidden_state(llama: Backbone) -> None:
    texts = random_ids(5, 1, 9)
    prompt = SoftPrompt(llama, llama.embed(random_ids(6, seed=3)[0]))
    lowered = lower(llama, prompt.state())
    assert_equal_to_rounding(
        states_behind(llama, DeepPrefix(llama, lowered.keys, lowered.values), texts), states_behind(llama, prompt, texts)
    )


def test_it_keeps_its_own_copy_of_the_start(llama: Backbone) -> None:
    rows = llama.embed(random_ids(2)[0])
    prompt = SoftPrompt(llama, rows)
    prompt.embeddings.data.add_(1)
    assert torch.equal(rows, llama.embed(random_ids(2)[0]))
    assert list(prompt.tensors()) == ["embeddings"] and not prompt.tensors()["embeddings"].requires_grad
