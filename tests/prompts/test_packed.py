"""The packed row of several prompts: whoever wants some rows only gets the states that these have among all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import assert_equal_to_rounding, backbone_at, random_ids, random_prefix, save_tiny
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.prompts import DeepPrefix, Prompt, PromptState, SoftPrompt, Tree, hidden_states

SEGMENTS = [ids.tolist() for ids in random_ids(5, 3, 4, vocabulary=200)]
WANTED = [[0, 4, 9, 10], None, []]


@pytest.fixture(scope="module", params=["llama", "gemma3", "gpt2", "bert"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return backbone_at(str(save_tiny(request.param, tmp_path_factory.mktemp("packed") / request.param)))


def trees_of(backbone: Backbone) -> tuple[list[Tree], list[Tensor]]:
    prompts: list[Prompt] = [DeepPrefix(backbone, *random_prefix(backbone, 3))]
    if backbone.causal:
        prompts.append(SoftPrompt(backbone, backbone.embed(random_ids(4, seed=3, vocabulary=200)[0])))
    states = [*(prompt.state() for prompt in prompts), PromptState.of(backbone)]
    trees = [Tree(state, SEGMENTS, [-1, 0, -1]) for state in states]
    return trees, [parameter for prompt in prompts for parameter in prompt.parameters()]


def test_rows_that_a_tree_names_have_the_states_and_gradients_that_they_have_among_all(backbone: Backbone) -> None:
    trees, parameters = trees_of(backbone)
    everything = hidden_states(backbone, trees)
    expected = [states if rows is None else states[rows] for states, rows in zip(everything, WANTED, strict=False)]
    found = hidden_states(backbone, [replace(tree, rows=rows) for tree, rows in zip(trees, WANTED, strict=False)])
    assert_equal_to_rounding(found[:2], expected[:2])
    assert [len(states) for states in found] == [len(states) for states in expected]
    gradients = [torch.autograd.grad(sum((x * x.cos()).sum() for x in states), parameters) for states in (found, expected)]
    assert_equal_to_rounding(*([gradient.flatten() for gradient in own] for own in gradients))


def test_a_fused_last_layer_completes_no_other_row(llama: Backbone) -> None:
    (tree, *_), _ = trees_of(llama)
    lengths: list[int] = []
    hook = llama._base.norm.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    try:
        for rows in ([0, 4, 9, 10], None, []):
            hidden_states(llama, [replace(tree, rows=rows)])
    finally:
        hook.remove()
    assert lengths == [4, 12, 0]
