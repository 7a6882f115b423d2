"""Prompts of an encoder-decoder: the hidden states and gradients of each example alone behind the same prompt, without padding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from encoder_decoders import FAMILIES, alone, plain_encoder_decoder, save_encoder_decoder
from helpers import assert_equal_to_rounding, backbone_at, random_ids, random_prefix
from torch import Tensor

from prompt_core.backbone import EncoderDecoder
from prompt_core.errors import PromptmillError
from prompt_core.prompts import DeepPrefix, PromptState, SoftPrompt, Tree, hidden_states, lower

SOURCES = [ids.tolist() for ids in random_ids(5, 1, 40, 7, vocabulary=200)]  # one so long that it runs apart from the rest
TARGETS = [ids.tolist() for ids in random_ids(3, 6, 1, 2, seed=9, vocabulary=200)]
SEGMENTS = [ids for pair in zip(SOURCES, TARGETS, strict=True) for ids in pair]
PARENTS = [-1, 0, -1, 2, -1, 4, -1, 6]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder_decoder(request.param, tmp_path_factory.mktemp("padded") / request.param)


@pytest.fixture
def backbone(folder: Path) -> EncoderDecoder:
    found = backbone_at(str(folder))
    assert isinstance(found, EncoderDecoder)
    return found


def some_rows(backbone: EncoderDecoder, tokens: int) -> Tensor:
    return backbone.embed(random_ids(tokens, seed=3, vocabulary=200)[0])


def by_the_book(folder: Path, rows: Tensor | None = None, prefix: tuple[Tensor, Tensor] | None = None) -> Tensor:
    model = plain_encoder_decoder(folder)
    pairs = zip(SOURCES, TARGETS, strict=True)
    return torch.cat([states for source, target in pairs for states in alone(model, source, target, rows, prefix)])


def gradients(states: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(2))
    return list(torch.autograd.grad((states * weights).sum(), list(parameters)))


def test_every_example_sees_a_soft_prompt_and_itself_alone(backbone: EncoderDecoder, folder: Path) -> None:
    prompt, rows = SoftPrompt(backbone, some_rows(backbone, 6)), some_rows(backbone, 6).requires_grad_()
    (found,) = hidden_states(backbone, [Tree(prompt.state(), SEGMENTS, PARENTS)])
    expected = by_the_book(folder, rows)
    assert_equal_to_rounding(found, expected)
    assert_equal_to_rounding(gradients(found, [prompt.embeddings]), gradients(expected, [rows]))


def test_every_example_sees_a_deep_prefix_and_itself_alone(backbone: EncoderDecoder, folder: Path) -> None:
    keys, values = (states.requires_grad_() for states in random_prefix(backbone, 3))
    prompt = DeepPrefix(backbone, keys, values)
    (found,) = hidden_states(backbone, [Tree(prompt.state(), SEGMENTS, PARENTS)])
    expected = by_the_book(folder, prefix=(keys, values))
    assert_equal_to_rounding(found, expected)
    assert_equal_to_rounding(gradients(found, [prompt.keys, prompt.values]), gradients(expected, [keys, values]))


def test_prompts_of_different_kind_and_length_share_a_pass(backbone: EncoderDecoder, folder: Path) -> None:
    soft, short, long = some_rows(backbone, 4), random_prefix(backbone, 2, seed=5), random_prefix(backbone, 7, seed=6)
    prompts = [SoftPrompt(backbone, soft), DeepPrefix(backbone, *short), DeepPrefix(backbone, *long)]
    found = hidden_states(backbone, [Tree(prompt.state(), SEGMENTS, PARENTS) for prompt in prompts])
    expected = [by_the_book(folder, soft), by_the_book(folder, prefix=short), by_the_book(folder, prefix=long)]
    for states, alone_states in zip(found, expected, strict=True):
        assert_equal_to_rounding(states, alone_states)


def test_neither_order_nor_company_changes_an_example(backbone: EncoderDecoder) -> None:
    prompt = SoftPrompt(backbone, some_rows(backbone, 6)).state()
    (together,) = hidden_states(backbone, [Tree(prompt, SEGMENTS, PARENTS)])
    (turned,) = hidden_states(backbone, [Tree(prompt, SEGMENTS[6:] + SEGMENTS[:2], [-1, 0, -1, 2])])
    parts = together.split([len(ids) for ids in SEGMENTS])
    assert_equal_to_rounding(turned, torch.cat([*parts[6:], *parts[:2]]))


def test_soft_tokens_stand_anywhere_in_an_input(backbone: EncoderDecoder, folder: Path) -> None:
    rows, model = some_rows(backbone, 2), plain_encoder_decoder(folder)
    prompt = PromptState.of(backbone, rows=rows, root=(20, -1))
    (found,) = hidden_states(backbone, [Tree(prompt, [[21, -2, 22], [30, 31]], [-1, 0])])
    embed = model.get_input_embeddings()
    sequence = torch.cat([embed(torch.tensor([20])), rows[:1], embed(torch.tensor([21])), rows[1:]])
    states, written = alone(model, [22], [30, 31], sequence)
    assert_equal_to_rounding(found[2:], torch.cat([states, written]))


def test_an_input_without_a_target_needs_no_decoder(backbone: EncoderDecoder, folder: Path) -> None:
    (found,) = hidden_states(backbone, [Tree(PromptState.of(backbone), [SOURCES[0], SOURCES[3], TARGETS[3]], [-1, -1, 1])])
    model = plain_encoder_decoder(folder)
    expected = [alone(model, SOURCES[0], [0])[0], *alone(model, SOURCES[3], TARGETS[3])]
    assert_equal_to_rounding(found, torch.cat(expected))


def test_the_keys_and_values_of_a_text_are_those_of_the_text_alone(backbone: EncoderDecoder, folder: Path) -> None:
    lowered = lower(backbone, PromptState.of(backbone, root=SOURCES[0]))
    assert lowered.root == () and lowered.keys.shape == lowered.values.shape == (2, len(SOURCES[0]), 4, 8)
    encoder, projected = plain_encoder_decoder(folder).get_encoder(), []
    for name, module in encoder.named_modules():
        if name.endswith(("SelfAttention.k", "self_attn.k_proj")):
            module.register_forward_hook(lambda module, inputs, output: projected.append(output[0].unflatten(-1, (4, 8))))
    encoder(input_ids=torch.tensor([SOURCES[0]]))
    assert_equal_to_rounding(lowered.keys, torch.stack(projected))


def test_branches_below_the_decoder_are_not_for_it(backbone: EncoderDecoder) -> None:
    for parents in ([-1, 0, 1], [-1, 0, 0]):
        with pytest.raises(ValueError, match="behind an encoder's input stand the tokens that its decoder reads, once"):
            hidden_states(backbone, [Tree(PromptState.of(backbone), [[5], [6], [7]], parents)])


def test_what_exceeds_the_positions_is_refused_in_one_line(tmp_path: Path) -> None:
    backbone = backbone_at(str(save_encoder_decoder("bart", tmp_path / "bart")))
    prompt = SoftPrompt(backbone, backbone.embed(torch.arange(30))).state()
    with pytest.raises(PromptmillError, match=r"an input behind its prompt has 70 tokens, the model 64 positions\. Lower prompt"):
        hidden_states(backbone, [Tree(prompt, [SOURCES[2]])])
    with pytest.raises(PromptmillError, match="a target has 65 tokens, the model 64 positions"):
        hidden_states(backbone, [Tree(prompt, [[5], [6] * 65], [-1, 0])])
