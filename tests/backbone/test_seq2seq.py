"""Encoder-decoders: padded rows are each example alone, and an architecture that would differ is refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_decoders import FAMILIES, alone, plain_encoder_decoder, save_encoder_decoder
from helpers import assert_equal_to_rounding, backbone_at, random_ids, random_prefix
from transformers import DynamicCache, EncoderDecoderCache

from prompt_core.backbone import EncoderDecoder
from prompt_core.errors import PromptmillError
from prompt_core.prompts import DeepPrefix, PromptState, Tree, encoder_states, hidden_states


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder_decoder(request.param, tmp_path_factory.mktemp("seq2seq") / request.param)


@pytest.fixture
def backbone(folder: Path) -> EncoderDecoder:
    found = backbone_at(str(folder))
    assert isinstance(found, EncoderDecoder)
    return found


def test_a_prompt_is_shaped_after_the_encoder(backbone: EncoderDecoder, folder: Path) -> None:
    assert (backbone.num_layers, backbone.num_kv_heads, backbone.head_dim, backbone.hidden_size) == (2, 4, 8, 32)
    assert (backbone.causal, backbone.generates) == (False, True)
    everything = torch.arange(len(backbone.vocabulary))
    assert torch.equal(backbone.vocabulary, plain_encoder_decoder(folder).get_input_embeddings()(everything))


def test_logits_are_the_models_own(backbone: EncoderDecoder, folder: Path) -> None:
    model, (source, target) = plain_encoder_decoder(folder), random_ids(9, 4, vocabulary=200)
    _, written = alone(model, source.tolist(), target.tolist())
    assert_equal_to_rounding(backbone.logits(written), model(input_ids=source[None], decoder_input_ids=target[None]).logits[0])


def test_token_by_token_gives_what_the_whole_target_gives(backbone: EncoderDecoder, folder: Path) -> None:
    sources, (target,) = [ids.tolist() for ids in random_ids(9, 2, vocabulary=200)], random_ids(5, seed=4, vocabulary=200)
    states, mask = encoder_states(backbone, PromptState.of(backbone), sources)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    steps = [backbone.decode(token.expand(2, 1), states, mask, cache) for token in target]
    for row, source in zip(torch.cat(steps, 1), sources, strict=True):
        assert_equal_to_rounding(row, alone(plain_encoder_decoder(folder), source, target.tolist())[1])


def test_layers_that_are_computed_again_give_the_same_gradients(backbone: EncoderDecoder) -> None:
    gradients = []
    for again in (False, True):
        prompt = DeepPrefix(backbone, *random_prefix(backbone, 3))
        if again:
            with backbone.recomputing():
                (states,) = hidden_states(backbone, [Tree(prompt.state(), [[5, 6, 7], [0, 9]], [-1, 0])])
                states.square().sum().backward()
        else:
            (states,) = hidden_states(backbone, [Tree(prompt.state(), [[5, 6, 7], [0, 9]], [-1, 0])])
            states.square().sum().backward()
        gradients.append(prompt.keys.grad)
    assert gradients[0] is not None and gradients[1] is not None
    assert torch.equal(gradients[0], gradients[1])


@pytest.mark.parametrize(
    ("family", "finding"),
    [
        ("pegasus", "PegasusForConditionalGeneration: gives other results in padded rows than alone"),
        ("longt5", "LongT5ForConditionalGeneration: called the attention step 0 times in 2 layers of its encoder"),
    ],
)
def test_another_encoder_decoder_is_refused_by_name_in_one_line(tmp_path: Path, family: str, finding: str) -> None:
    folder = save_encoder_decoder(family, tmp_path / family)
    with pytest.raises(PromptmillError, match=re.escape(f"backbone: architecture {finding}")) as caught:
        backbone_at(str(folder))
    assert "\n" not in str(caught.value)


def attached(folder: Path, change: Callable[[Any], object]) -> EncoderDecoder:
    """A BART that is changed before it is attached."""
    model, like = plain_encoder_decoder(folder), backbone_at(str(folder))
    change(model)
    return EncoderDecoder(model, like.tokenizer, like.identity, None)


def test_a_bias_of_the_logits_is_refused(tmp_path: Path) -> None:
    folder = save_encoder_decoder("bart", tmp_path / "bart")
    with pytest.raises(PromptmillError, match=r"BartForConditionalGeneration: adds a bias to its logits\. It cannot be tuned exactly"):
        attached(folder, lambda model: model.final_logits_bias.fill_(0.5))


def test_a_decoder_that_starts_with_nothing_known_is_refused(tmp_path: Path) -> None:
    folder = save_encoder_decoder("t5", tmp_path / "t5")
    for name in ("config.json", "generation_config.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | {"decoder_start_token_id": None}))
    with pytest.raises(PromptmillError, match="T5ForConditionalGeneration: does not say which token its decoder starts with"):
        backbone_at(str(folder))


def test_a_model_that_mixes_rows_is_refused(tmp_path: Path) -> None:
    folder = save_encoder_decoder("bart", tmp_path / "bart")
    with pytest.raises(PromptmillError, match=r"gives other results in padded rows than alone \(they differ by \d+%\)"):
        attached(folder, lambda model: model.get_encoder().register_forward_hook(mixed))


def mixed(module: Any, inputs: Any, output: Any) -> None:
    output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.roll(1, 0)
