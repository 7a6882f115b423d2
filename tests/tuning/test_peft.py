"""Loss and gradients equal to PEFT's, the peer that tunes the same prompts in padded rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from helpers import assert_equal_to_rounding, backbone_at, plain_model, random_ids, save_tiny
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.encoded import Encoded
from prompt_core.prompts import DeepPrefix, Prompt, Reparameterised, SoftPrompt, Tree, hidden_states
from prompt_core.tuning.objective import Generation

FAMILIES = ["llama", "qwen2", "gpt2", "gpt_neox"]
TOKENS = 5
BATCH = [
    Encoded(tuple(i.tolist()), tuple(t.tolist()), False) for i, t in zip(random_ids(6, 2, 9), random_ids(3, 5, 1, seed=4), strict=True)
]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Backbone, Path]:
    folder = save_tiny(request.param, tmp_path_factory.mktemp("peft") / request.param)
    return backbone_at(str(folder)), folder


def peft_loss(folder: Path, config: Any, weights: dict[str, Tensor]) -> tuple[Tensor, Any]:
    """PEFT's mean loss over the target tokens of right-padded rows, and its prompt encoder with gradients."""
    model = peft.get_peft_model(plain_model(folder), config)
    encoder = model.prompt_encoder["default"]
    encoder.load_state_dict(encoder.state_dict() | weights)
    longest = max(len(e.input) + len(e.target) for e in BATCH)
    ids, mask, labels = torch.zeros(3, len(BATCH), longest, dtype=torch.int64)
    labels -= 100
    for row, e in enumerate(BATCH):
        sequence = torch.tensor(e.input + e.target)
        ids[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
        labels[row, len(e.input) : len(sequence)] = sequence[len(e.input) :]
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    return loss.detach(), encoder


def our_loss(backbone: Backbone, prompt: Prompt) -> Tensor:
    objective = Generation(backbone)
    (states,) = hidden_states(backbone, [Tree(prompt.state(), *objective.segments(BATCH))])
    loss = objective.loss(states, BATCH) / sum(map(objective.weight, BATCH))
    loss.backward()
    return loss.detach()


def normal(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(11))


def assert_same_gradients(ours: Any, theirs: Any) -> None:
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    assert pairs
    for found, expected in pairs:
        # PEFT adds the rows of a batch up in another order: relative to the largest gradient.
        scale = expected.grad.abs().max()
        assert_equal_to_rounding(found.grad / scale, expected.grad / scale)


def test_prompt_tuning(family: tuple[Backbone, Path]) -> None:
    backbone, folder = family
    rows = normal(TOKENS, backbone.hidden_size, scale=0.3)
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS)
    expected, encoder = peft_loss(folder, config, {"embedding.weight": rows})
    prompt = SoftPrompt(backbone, rows)
    assert_equal_to_rounding(our_loss(backbone, prompt), expected)
    assert_same_gradients(prompt, encoder)


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_p_tuning(family: tuple[Backbone, Path], kind: Any) -> None:
    backbone, folder = family
    width = backbone.hidden_size
    start = SoftPrompt(backbone, torch.zeros(TOKENS, width))
    prompt = Reparameterised(start, kind, 24, torch.Generator().manual_seed(0), inner=normal(TOKENS, width))
    with torch.no_grad():
        for weight in prompt.network.parameters():
            weight.copy_(normal(*weight.shape, scale=0.2))
    config = peft.PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=TOKENS,
        encoder_reparameterization_type=kind.upper(),
        encoder_hidden_size=24,
        encoder_dropout=0.0,
    )
    own = prompt.network.state_dict()
    if kind == "mlp":
        weights = {f"mlp_head.{name}": weight for name, weight in own.items()}
    else:  # their LSTM stands apart from the layers behind it
        weights = {f"lstm_head.{name.removeprefix('0.lstm.')}": weight for name, weight in own.items() if name.startswith("0.")}
        weights |= {f"mlp_head.{int(name[0]) - 1}{name[1:]}": weight for name, weight in own.items() if not name.startswith("0.")}
    expected, encoder = peft_loss(folder, config, {"embedding.weight": prompt.inner.detach(), **weights})
    assert_equal_to_rounding(our_loss(backbone, prompt), expected)
    trained = torch.nn.ParameterList([prompt.inner, *prompt.network.parameters()])
    assert_same_gradients(trained, encoder)


@pytest.mark.parametrize("projected", [False, True])
def test_prefix_tuning(family: tuple[Backbone, Path], projected: bool) -> None:
    backbone, folder = family
    shape = (backbone.num_layers, TOKENS, backbone.num_kv_heads, backbone.head_dim)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS, prefix_projection=projected, encoder_hidden_size=24)
    if projected:
        probe = peft.get_peft_model(plain_model(folder), config).prompt_encoder["default"]
        prompt: Prompt = Reparameterised(
            DeepPrefix(backbone, torch.zeros(shape), torch.zeros(shape)),
            "mlp",
            24,
            torch.Generator().manual_seed(0),
            inner=normal(TOKENS, probe.embedding.weight.shape[1]),
        )
        assert isinstance(prompt, Reparameterised)
        with torch.no_grad():
            for weight in prompt.network.parameters():
                weight.copy_(normal(*weight.shape, scale=0.3))
        weights = {f"transform.{name}": weight for name, weight in prompt.network.state_dict().items()}
        expected, encoder = peft_loss(folder, config, {"embedding.weight": prompt.inner.detach(), **weights})
        assert_equal_to_rounding(our_loss(backbone, prompt), expected)
        assert_same_gradients(torch.nn.ParameterList([prompt.inner, *prompt.network.parameters()]), encoder)
        return
    keys, values = normal(2, *shape)
    flat = torch.stack([keys, values]).permute(2, 1, 0, 3, 4).reshape(TOKENS, -1)  # theirs: tokens, layers, (key, value), heads
    prompt = DeepPrefix(backbone, keys, values)
    expected, encoder = peft_loss(folder, config, {"embedding.weight": flat})
    assert_equal_to_rounding(our_loss(backbone, prompt), expected)
    theirs = encoder.embedding.weight.grad.view(TOKENS, backbone.num_layers, 2, *shape[2:]).permute(2, 1, 0, 3, 4)
    scale = theirs.abs().max()
    for found, gradient in zip((prompt.keys.grad, prompt.values.grad), theirs, strict=True):
        assert found is not None
        assert_equal_to_rounding(found / scale, gradient / scale)
