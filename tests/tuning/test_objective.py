"""Objectives in a packed batch: the losses, scores and gradients of each example alone, computed as in a textbook."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import a_task, assert_equal_to_rounding, behind_cache, behind_rows, plain_model, random_ids, random_prefix
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.data.packing import pack
from prompt_core.encoded import Encoded
from prompt_core.encoding import TaskEncoding
from prompt_core.prompts import DeepPrefix, Prompt, PromptState, SoftPrompt, Tree, hidden_states
from prompt_core.tuning.label_tree import LabelTree
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


@given(order=st.permutations(range(5)), budget=st.integers(4, 60), kind=st.sampled_from(["soft", "deep"]))
@settings(max_examples=15, deadline=None)
def test_the_loss_is_the_same_for_any_order_and_any_packing(llama: Backbone, order: list[int], budget: int, kind: str) -> None:
    examples, objective = encoded((5, 1, 9, 3, 7), (4, 1, 3, 2, 6)), Generation(llama)
    gradients = []
    for passes in ([examples], list(pack([examples[i] for i in order], objective.tokens, budget))):
        prompt = a_prompt(kind, llama)
        total = sum(loss_behind(llama, prompt, objective, part) for part in passes)
        assert isinstance(total, Tensor)
        total.backward()
        gradients.append([total.detach()[None], *(p.grad.flatten() for p in prompt.parameters() if p.grad is not None)])
    assert_equal_to_rounding(gradients[1], gradients[0])


def test_a_template_with_soft_tokens_anywhere_equals_the_dense_computation(llama: Backbone, llama_folder: Path) -> None:
    template = [{"system": "Sort {{ soft(3) }} mail."}, {"user": "{{ text }}{{ soft(2) }} or {{ soft(1) }}{{ text }}"}]
    encoding = TaskEncoding(a_task(template=template, objective="generate"), llama)
    examples = [encoding.encode({"text": text}, target) for text, target in (("late parcel", "yes"), ("a", "no no"), ("b c d", "maybe"))]
    assert {-1, -2, -3} < set(encoding.root) and {-4, -5, -6} < set(examples[0].input)
    rows = llama.embed(random_ids(6, seed=3)[0])
    prompt = SoftPrompt(llama, rows, encoding.root)
    loss = loss_behind(llama, prompt, Generation(llama), examples)
    loss.backward()

    model, alone = plain_model(llama_folder), rows.clone().requires_grad_()
    expected = torch.zeros(())
    for example in examples:
        ids = torch.tensor((*encoding.root, *example.input, *example.target))
        table = torch.cat([model.get_input_embeddings().weight, alone.flip(0)])  # so that -1 - j indexes row j
        logits = model(inputs_embeds=table[ids][None]).logits[0, :-1]
        target = len(example.target)
        expected = expected + F.cross_entropy(logits[-target:], ids[-target:], reduction="sum")
    expected.backward()
    assert_equal_to_rounding(loss, expected)
    assert prompt.embeddings.grad is not None and alone.grad is not None
    assert_equal_to_rounding(prompt.embeddings.grad, alone.grad)


sequences = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5).map(lambda ids: (*ids, 9)), min_size=1, max_size=8, unique=True)


@given(sequences)
def test_a_label_tree_predicts_every_token_of_every_label_after_what_comes_before_it(labels: list[tuple[int, ...]]) -> None:
    tree = LabelTree(labels)
    paths: list[tuple[int, ...]] = []  # of each segment, from the root
    at_row: list[tuple[int, ...]] = [()]  # what has been read at each row
    for segment, parent in zip(tree.segments, tree.parents, strict=True):
        before = paths[parent] if parent >= 0 else ()
        at_row += [(*before, *segment[: i + 1]) for i in range(len(segment))]
        paths.append((*before, *segment))
    assert tree.num_tokens == len(at_row) - 1 == len(set(at_row)) - 1  # no beginning is there twice
    for number, label in enumerate(labels):
        predictions = [prediction for prediction, member in tree.members if member == number]
        assert [(at_row[tree.row_of[p]], tree.targets[p]) for p in predictions] == [(label[:i], label[i]) for i in range(len(label))]


def test_a_score_is_the_mean_over_a_labels_tokens_or_their_sum(llama: Backbone) -> None:
    words = [tuple(ids.tolist()) for ids in random_ids(2, 4, 1, seed=9)]
    prompt, batch = a_prompt("deep", llama).state(), encoded((5, 1), (1, 1))
    mean, total = (LabelWords(llama, words, normalised).scores_behind(prompt, batch) for normalised in (True, False))
    assert_equal_to_rounding(mean * torch.tensor([2.0, 4.0, 1.0]), total)
