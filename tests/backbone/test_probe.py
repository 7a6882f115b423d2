"""The probe: architectures that use the attention step are exact, all others are refused by name."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from helpers import (
    assert_equal_to_rounding,
    backbone_at,
    behind_cache,
    behind_rows,
    plain_model,
    random_ids,
    random_prefix,
    save_tiny,
    states_behind,
)

from prompt_core.backbone import Backbone
from prompt_core.backbone.probe import probe
from prompt_core.errors import PromptmillError
from prompt_core.prompts import DeepPrefix, SoftPrompt


@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "opt", "qwen2", "mistral", "gemma2"])
def test_an_accepted_architecture_is_exact_behind_both_kinds_of_prompt(tmp_path: Path, architecture: str) -> None:
    folder = save_tiny(architecture, tmp_path / architecture)
    backbone, model, texts = backbone_at(str(folder)), plain_model(folder), random_ids(5, 1, 9)
    rows = backbone.embed(random_ids(3, seed=3)[0])
    assert_equal_to_rounding(states_behind(backbone, SoftPrompt(backbone, rows), texts), [behind_rows(model, rows, ids) for ids in texts])
    keys, values = random_prefix(backbone, 3)
    assert_equal_to_rounding(
        states_behind(backbone, DeepPrefix(backbone, keys, values), texts), [behind_cache(model, keys, values, ids) for ids in texts]
    )
    assert_equal_to_rounding(backbone.logits(rows), model.lm_head(rows) if architecture != "gemma2" else capped(model, rows))


def capped(model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    cap = model.config.final_logit_softcapping
    capped: torch.Tensor = cap * torch.tanh(model.lm_head(rows) / cap)
    return capped


@pytest.mark.parametrize(
    ("architecture", "finding"),
    [
        ("bloom", "architecture BloomModel: called the attention step 0 times in 2 layers"),
        ("codegen", "architecture CodeGenModel: called the attention step 0 times in 2 layers"),
        ("xglm", "architecture XGLMModel: called the attention step 0 times in 2 layers"),
        ("mamba", "architecture MambaForCausalLM: has no attention heads"),
        ("t5", "t5: is an encoder-decoder (t5). Use a causal model or an encoder."),
    ],
)
def test_another_architecture_is_refused_by_name_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], architecture: str, finding: str
) -> None:
    folder = save_tiny(architecture, tmp_path / architecture)
    capfd.readouterr()
    with pytest.raises(PromptmillError, match=re.escape(f"backbone: {finding}")) as caught:
        backbone_at(str(folder))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # the one line is the command's; transformers adds none of its own


@pytest.mark.parametrize(("shift", "finding"), [(-1, "looks ahead"), (1, "lets an example see its neighbour in the packed row")])
def test_a_model_that_mixes_tokens_outside_its_attention_is_refused(llama: Backbone, shift: int, finding: str) -> None:
    base = copy.deepcopy(llama._base)
    base.get_input_embeddings().register_forward_hook(lambda module, ids, rows: rows + rows.roll(shift, 1))
    with pytest.raises(PromptmillError, match=f"architecture LlamaModel: {finding}. It cannot be tuned exactly"):
        probe(base, True, 0)


def test_a_model_without_its_packed_row_says_so(llama: Backbone) -> None:
    with pytest.raises(RuntimeError, match="was called without its packed row: run the model through Backbone"):
        llama._base(input_ids=random_ids(4)[0][None])


def test_padding_is_refused(llama: Backbone) -> None:
    with pytest.raises(ValueError, match="attention_mask: a packed row has no padding"):
        llama._base(input_ids=random_ids(4)[0][None], attention_mask=torch.tensor([[1, 1, 1, 0]]))
