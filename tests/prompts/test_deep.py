"""A deep prefix in a packed row: the hidden states and gradients of each example alone behind the same keys and values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import assert_equal_to_rounding, behind_cache, encoder_behind_cache, plain_model, random_ids, random_prefix, states_behind
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.encoded import Encoded
from prompt_core.methods import TuneSpec
from prompt_core.prompts import DeepPrefix, PromptState, Tree, hidden_states
from prompt_core.tuning.gradient import Fleet
from prompt_core.tuning.member import Member, Part
from prompt_core.tuning.objective import Generation


def test_every_example_of_a_causal_model_sees_the_prefix_and_itself_alone(llama: Backbone, llama_folder: Path) -> None:
    model, texts = plain_model(llama_folder), random_ids(5, 1, 9)
    keys, values = random_prefix(llama, 6)
    found = states_behind(llama, DeepPrefix(llama, keys, values), texts)
    assert_equal_to_rounding(found, [behind_cache(model, keys, values, ids) for ids in texts])


def test_gradients_are_the_sum_over_the_examples(llama: Backbone, llama_folder: Path) -> None:
    model, texts = plain_model(llama_folder), random_ids(5, 1, 9)
    prompt = DeepPrefix(llama, *random_prefix(llama, 6))
    sum(states.square().sum() for states in states_behind(llama, prompt, texts)).backward()
    keys, values = (states.requires_grad_() for states in random_prefix(llama, 6))
    for ids in texts:
        behind_cache(model, keys, values, ids).square().sum().backward()
    for found, alone in ((prompt.keys, keys), (prompt.values, values)):
        assert found.grad is not None and alone.grad is not None
        assert_equal_to_rounding(found.grad, alone.grad)


def test_the_bare_encoder_packs_to_its_own_states(bert: Backbone, bert_folder: Path) -> None:
    model, texts = plain_model(bert_folder, causal=False), random_ids(5, 1, 9)
    expected: list[Tensor] = [model(input_ids=ids[None]).last_hidden_state[0] for ids in texts]
    (found,) = hidden_states(bert, [Tree(PromptState.of(bert), [ids.tolist() for ids in texts])])
    assert_equal_to_rounding(found, torch.cat(expected))


def test_an_encoder_behind_a_prefix_equals_dense_attention(bert: Backbone, bert_folder: Path) -> None:
    model, texts = plain_model(bert_folder, causal=False), random_ids(5, 1, 9)
    prompt = DeepPrefix(bert, *random_prefix(bert, 3))
    found = states_behind(bert, prompt, texts)
    keys, values = (states.requires_grad_() for states in random_prefix(bert, 3))
    expected = [encoder_behind_cache(model, keys, values, ids) for ids in texts]
    assert_equal_to_rounding([states.detach() for states in found], [states.detach() for states in expected])
    sum(states[0].sum() for states in found).backward()
    sum(states[0].sum() for states in expected).backward()
    assert prompt.keys.grad is not None and keys.grad is not None
    assert_equal_to_rounding(prompt.keys.grad, keys.grad)


def test_the_dense_encoder_without_a_prefix_is_the_plain_one(bert: Backbone, bert_folder: Path) -> None:
    model, (ids,) = plain_model(bert_folder, causal=False), random_ids(7)
    bare = PromptState.of(bert)
    assert_equal_to_rounding(encoder_behind_cache(model, bare.keys, bare.values, ids), model(input_ids=ids[None]).last_hidden_state[0])


def test_two_passes_give_the_same_bits(llama: Backbone) -> None:
    gradients = []
    for _ in range(2):
        prompt = DeepPrefix(llama, *random_prefix(llama, 6))
        sum(states.square().sum() for states in states_behind(llama, prompt, random_ids(5, 1, 9))).backward()
        gradients.append(prompt.keys.grad)
    assert gradients[0] is not None and gradients[1] is not None
    assert torch.equal(gradients[0], gradients[1])


def test_a_step_is_as_large_as_the_layer_is(llama: Backbone) -> None:
    keys, values = random_prefix(llama, 6)
    values = values * torch.tensor([0.1, 1.0]).view(2, 1, 1, 1) / values.square().flatten(1).mean(1).sqrt().view(2, 1, 1, 1)
    prompt, example = DeepPrefix(llama, keys, values), Encoded(tuple(random_ids(5)[0].tolist()), (3, 4), False)
    spec = TuneSpec(steps=1, learning_rate=1e-3, warmup=0.0, decay="constant")
    fleet = Fleet(llama, [Member([Part(prompt, Generation(llama), [example], [])], spec, torch.Generator())])
    fleet.advance()
    fleet.finish()
    moved = (prompt.values.detach() - values).abs().flatten(1).median(1).values
    assert moved.tolist() == pytest.approx([1e-3, 1e-2], rel=0.01)  # in units of the median layer, of two the lower one


@pytest.mark.parametrize(("tokens", "size", "sink"), [(3, 0.0, False), (1, 1.0, True)])
def test_a_start_without_a_size_has_one_rate_for_all_layers(llama: Backbone, tokens: int, size: float, sink: bool) -> None:
    prompt = DeepPrefix(llama, *(size * states for states in random_prefix(llama, tokens)), sink=sink)
    assert len(prompt.units()) == 2 and all(bool((unit == 1).all()) for unit in prompt.units().values())
