"""The probe: architectures that do not take the attention step, or take it otherwise, are refused by name in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import backbone_at, plain_model, random_ids, save_tiny, wordless_tokenizer

from prompt_core.backbone import Backbone, load_backbone
from prompt_core.errors import PromptmillError
from prompt_core.task import BackboneSpec


@pytest.mark.parametrize(
    ("architecture", "finding"),
    [
        ("bloom", "architecture BloomModel: called the attention step 0 times in 2 layers"),
        ("codegen", "architecture CodeGenModel: called the attention step 0 times in 2 layers"),
        ("xglm", "architecture XGLMModel: called the attention step 0 times in 2 layers"),
        ("deberta_v2", "architecture DebertaV2Model: called the attention step 0 times in 2 layers"),
        ("mamba", "architecture MambaModel: called the attention step 0 times in 2 layers"),
        ("llama_chunked", "architecture LlamaModel: asks for window None in layer 1, which is of kind chunked_attention"),
        ("phi", "architecture PhiModel: adds a bias to its logits"),
        ("bert_decoder", "architecture BertModel: does not look ahead, as an encoder does"),
        ("phimoe", "architecture PhimoeModel: masks with window 64, but its layers ask for None"),
        ("modernbert_decoder", "architecture ModernBertDecoderModel: adds a bias to its logits"),
        ("gemma3_embedding", "architecture Gemma3ForCausalLM: looks ahead"),
    ],
)
def test_another_architecture_is_refused_by_name_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], architecture: str, finding: str
) -> None:
    folder = save_tiny(architecture, tmp_path / architecture, wordless_tokenizer())
    capfd.readouterr()
    with pytest.raises(PromptmillError, match=re.escape(f"backbone: {finding}")) as caught:
        backbone_at(str(folder))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # the one line is the command's; transformers adds none of its own


@pytest.mark.parametrize("architecture", ["bert_decoder", "gemma3_embedding"])
def test_which_way_a_model_looks_is_seen_through_the_rounding_of_bfloat16(tmp_path: Path, architecture: str) -> None:
    folder = save_tiny(architecture, tmp_path / architecture, wordless_tokenizer())
    with pytest.raises(PromptmillError, match="look"):
        load_backbone(BackboneSpec(name=str(folder), dtype="bfloat16"))


def test_a_window_of_the_mask_that_hides_nothing_need_not_reach_the_layers(tmp_path: Path) -> None:
    folder = save_tiny("phimoe", tmp_path / "phimoe", wordless_tokenizer())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sliding_window": config["max_position_embeddings"]}))
    assert backbone_at(str(folder)).max_positions == 256


def attached(folder: Path, change: Callable[[Any], object], like: Backbone) -> Backbone:
    """A model that is changed before it is attached."""
    model = plain_model(folder)
    change(model)
    identity = like.identity.model_copy(update={"dtype": str(model.dtype).removeprefix("torch.")})
    return Backbone(model, like.tokenizer, True, False, identity, None)


def mixing_tokens(shift: int) -> Callable[[Any], object]:
    """A change of a model that mixes neighbouring tokens of a packed row in front of its first layer."""

    def mix(layer: Any, args: Any, kwargs: Any) -> Any:
        rows = args[0]
        return ((rows + rows.roll(shift, -2), *args[1:]), kwargs) if kwargs.get("prompt_pass") else None

    return lambda model: model.model.layers[0].register_forward_pre_hook(mix, with_kwargs=True)


@pytest.mark.parametrize(
    ("dtype", "shift", "finding"),
    [
        (dtype, shift, finding)
        for dtype in (torch.float32, torch.bfloat16)
        for shift, finding in ((-1, "looks ahead"), (1, "lets an example see its neighbour in the packed row"))
    ],
)
def test_a_model_that_mixes_tokens_outside_its_attention_is_refused(
    llama_folder: Path, llama: Backbone, dtype: torch.dtype, shift: int, finding: str
) -> None:
    mix = mixing_tokens(shift)
    with pytest.raises(PromptmillError, match=f"architecture LlamaModel: {finding}. It cannot be tuned exactly"):
        attached(llama_folder, lambda model: mix(model.to(dtype)), llama)


def test_a_model_with_a_head_of_its_own_is_refused(llama_folder: Path, llama: Backbone) -> None:
    def halve(module: Any, inputs: Any, output: Any) -> None:
        output.logits = output.logits / 2

    with pytest.raises(PromptmillError, match="gives other results in a packed row than alone \\(they differ by 100%\\)"):
        attached(llama_folder, lambda model: model.register_forward_hook(halve), llama)


def test_a_model_whose_attention_is_shared_between_layers_is_refused(llama_folder: Path, llama: Backbone) -> None:
    def share(model: Any) -> None:
        model.model.layers[1] = model.model.layers[0]

    with pytest.raises(PromptmillError, match="architecture LlamaModel: shares one attention module between layers"):
        attached(llama_folder, share, llama)


def test_a_model_without_its_packed_row_says_so(llama: Backbone) -> None:
    with pytest.raises(RuntimeError, match="was called without its packed row: run the model through Backbone"):
        llama._base(input_ids=random_ids(4)[0][None])


def test_padding_is_refused(llama: Backbone) -> None:
    with pytest.raises(ValueError, match="attention_mask: a packed row has no padding"):
        llama._base(input_ids=random_ids(4)[0][None], attention_mask=torch.tensor([[1, 1, 1, 0]]))
