"""Compaction: as many keys and values as the context has are the context, fewer are closer to it than its first ones."""

from __future__ import annotations

import pytest
import torch
from helpers import backbone_at, random_ids, save_tiny
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.prompts import PromptState, Tree, compaction, hidden_states, lower
from prompt_core.prompts.compaction import compact

CONTEXT, *TEXTS = [ids.tolist() for ids in random_ids(60, *[9, 14, 11, 20] * 6, seed=3)]
LEARNED, HELD_OUT = TEXTS[:18], TEXTS[18:]


@pytest.fixture(autouse=True)
def fewer_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "_STEPS", 60)


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2", "gpt_oss"])
def backbone(request: pytest.FixtureRequest, llama: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """Turned positions, added ones, a softcap with sliding windows, and attention sinks."""
    if request.param == "llama":
        return llama
    return backbone_at(str(save_tiny(request.param, tmp_path_factory.mktemp("models") / request.param)))


def behind(backbone: Backbone, state: PromptState, texts: list[list[int]]) -> Tensor:
    (states,) = hidden_states(backbone, [Tree(state, texts)])
    return states


def compacted(backbone: Backbone, tokens: int, seed: int = 0) -> PromptState:
    context = lower(backbone, PromptState.of(backbone, root=CONTEXT))
    keys, values = compact(backbone, context, LEARNED, tokens, torch.Generator().manual_seed(seed))
    assert keys.shape == values.shape == (backbone.num_layers, tokens, backbone.num_kv_heads, backbone.head_dim)
    return PromptState.of(backbone, keys=keys, values=values)


def error(backbone: Backbone, state: PromptState) -> float:
    """Of what texts that nothing was fitted to get, relative to what they get behind the context."""
    exact = behind(backbone, PromptState.of(backbone, root=CONTEXT), HELD_OUT)
    return float((behind(backbone, state, HELD_OUT) - exact).norm() / exact.norm())


def test_as_many_as_the_context_has_are_the_context(backbone: Backbone) -> None:
    assert error(backbone, compacted(backbone, len(CONTEXT))) < 1e-3


@pytest.mark.parametrize("tokens", [2, 12])
def test_few_are_closer_to_the_context_than_its_first_and_last_ones(backbone: Backbone, tokens: int) -> None:
    found = error(backbone, compacted(backbone, tokens))
    cut = [PromptState.of(backbone, root=ids) for ids in (CONTEXT[:tokens], CONTEXT[-tokens:])]
    assert found < min(error(backbone, state) for state in cut)


def test_more_tokens_come_closer(llama: Backbone) -> None:
    errors = [error(llama, compacted(llama, tokens)) for tokens in (4, 12, 36, 60)]
    assert errors == sorted(errors, reverse=True)


def test_one_is_the_first(llama: Backbone) -> None:
    first = lower(llama, PromptState.of(llama, root=CONTEXT)).values[:, :1]
    assert torch.equal(compacted(llama, 1).values, first)
    assert torch.equal(compacted(llama, 5).values[:, :1], first)


def test_the_seed_decides(llama: Backbone) -> None:
    one, same, other = (compacted(llama, 5, seed) for seed in (0, 0, 1))
    assert torch.equal(one.keys, same.keys) and torch.equal(one.values, same.values)
    assert not torch.equal(one.keys, other.keys)


def test_a_long_text_alone_is_read_whole_and_of_many_as_many_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "_ROWS", 40)
    generator = torch.Generator().manual_seed(0)
    assert compaction._drawn([[1] * 90], generator) == [[1] * 90]
    drawn = compaction._drawn(TEXTS, generator)
    assert 20 < sum(map(len, drawn)) <= 40
    assert all(text in TEXTS for text in drawn)
