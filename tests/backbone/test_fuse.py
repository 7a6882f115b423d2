"""Fused layers: recognised by structure, equal to the layers that they replace, forward and backward."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers import save_tiny, wordless_tokenizer
from prefix_attention import PromptForest, cpu
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prompt_core.backbone import ForestPass
from prompt_core.backbone.attention import NAME
from prompt_core.backbone.frozen import GATES, FrozenLayer, Norm
from prompt_core.backbone.fuse import fuse_layers
from prompt_core.backbone.product import Product

FUSED = ["llama", "mistral", "qwen2", "qwen2_local", "qwen3", "gemma2", "gemma3", "phi3", "phi3_long", "olmo2"]
FOREST = PromptForest.from_segments((4, 9, 1, 6, 3, 5), (-1, 0, 0, 0, 3, 3))


def attached(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The model without its head, with the attention step, unfused."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=dtype)
    model.eval().requires_grad_(False).set_attn_implementation(NAME)
    return model.base_model


def fused(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    base = attached(folder, dtype)
    assert fuse_layers(base, 0) == base.config.num_hidden_layers
    return base


def run(base: Any, rows: Tensor) -> Tensor:
    states: Tensor = base(
        inputs_embeds=rows[None], position_ids=FOREST.position_ids[None], use_cache=False, prompt_pass=ForestPass(FOREST)
    ).last_hidden_state[0]
    return states


def states_and_gradient(base: Any, seen: int | None = None) -> tuple[Tensor, Tensor]:
    """Of random rows, the same for every model of a width; only the first `seen` states have a part in the gradient."""
    generator = torch.Generator().manual_seed(5)
    shape = (FOREST.num_tokens, base.config.hidden_size)
    rows, weights = (torch.randn(shape, generator=generator) for _ in range(2))
    rows.requires_grad_()
    states = run(base, rows.to(base.dtype))
    if seen is not None:
        weights[seen:] = 0
    (gradient,) = torch.autograd.grad(states, rows, weights.to(states.dtype))
    return states.detach(), gradient


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("architecture", FUSED)
def test_states_and_gradients_are_those_of_the_unfused_model(tmp_path: Path, architecture: str) -> None:
    folder = save_tiny(architecture, tmp_path, wordless_tokenizer())
    found, expected = states_and_gradient(fused(folder)), states_and_gradient(attached(folder))
    assert error(found[0], expected[0]) < 1e-5
    assert error(found[1], expected[1]) < 1e-5


@pytest.mark.parametrize("architecture", FUSED)
@pytest.mark.parametrize("seen", [0, 1, 7])
def test_states_that_no_loss_looks_at_change_nothing(tmp_path: Path, architecture: str, seen: int) -> None:
    folder = save_tiny(architecture, tmp_path, wordless_tokenizer())
    found, expected = states_and_gradient(fused(folder), seen)[1], states_and_gradient(attached(folder), seen)[1]
    assert bool(expected.any()) == bool(seen)
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3", "olmo2"])
def test_bfloat16_is_as_near_to_float32_as_the_unfused_model_is(tmp_path: Path, architecture: str) -> None:
    folder = save_tiny(architecture, tmp_path, wordless_tokenizer())
    exact = states_and_gradient(attached(folder))
    unfused = states_and_gradient(attached(folder, torch.bfloat16))
    found = states_and_gradient(fused(folder, torch.bfloat16))
    for mine, plain, truth in zip(found, unfused, exact, strict=True):
        assert error(mine, truth) < 2 * error(plain, truth)


@pytest.mark.parametrize("architecture", ["qwen3_moe", "gpt2", "gpt_neox", "opt", "cohere", "gpt_oss"])
def test_a_layer_of_another_structure_stays_as_it_is(tmp_path: Path, architecture: str) -> None:
    base = attached(save_tiny(architecture, tmp_path, wordless_tokenizer()))
    classes = [type(module) for module in base.modules()]
    assert fuse_layers(base, 0) == 0
    assert [type(module) for module in base.modules()] == classes


def test_a_layer_of_known_structure_that_computes_something_else_stays_as_it_is(tmp_path: Path) -> None:
    folder = save_tiny("granite", tmp_path, wordless_tokenizer())
    assert fuse_layers(attached(folder), 0) == 2
    scaled = attached(folder)
    for layer in scaled.layers:
        layer.residual_multiplier = 0.9
    assert fuse_layers(scaled, 0) == 0


def test_layers_are_judged_one_by_one(tmp_path: Path) -> None:
    base = attached(save_tiny("smollm3", tmp_path, wordless_tokenizer()))
    assert [layer.self_attn.use_rope for layer in base.layers] == [1, 0]
    assert fuse_layers(base, 0) == 1
    assert [type(layer) is transformers.models.smollm3.modeling_smollm3.SmolLM3DecoderLayer for layer in base.layers] == [False, True]


def test_a_layer_whose_forward_somebody_replaced_stays_as_it_is(tmp_path: Path) -> None:
    base = attached(save_tiny("llama", tmp_path, wordless_tokenizer()))
    hooked = base.layers[0].mlp
    hooked.forward = hooked.forward
    assert fuse_layers(base, 0) == 1


def test_a_fused_layer_keeps_its_name_its_weights_and_its_refusal_of_anything_but_a_packed_row(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path, wordless_tokenizer())
    base, plain = fused(folder), attached(folder)
    assert type(base.layers[0]).__name__ == "LlamaDecoderLayer"
    assert isinstance(base.layers[0], type(plain.layers[0]))
    expected = plain.state_dict()
    assert base.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in base.state_dict().items())
    with pytest.raises(RuntimeError, match="was called without its packed row"):
        base(input_ids=torch.tensor([[1, 2]]))


def test_without_gradients_and_in_a_copy_it_gives_the_same_states(tmp_path: Path) -> None:
    base = fused(save_tiny("qwen3", tmp_path, wordless_tokenizer()))
    states, _ = states_and_gradient(base)
    rows = torch.randn(states.shape, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        assert torch.equal(run(base, rows), states)
        assert torch.equal(run(copy.deepcopy(base), rows), states)


def test_attaching_again_follows_changed_weights(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path, wordless_tokenizer())
    base, plain = copy.deepcopy(fused(folder)), attached(folder)
    for model in (base, plain):
        model.layers[0].mlp.down_proj.weight.data *= 2
    assert fuse_layers(base, 0) == 2
    assert error(states_and_gradient(base)[0], states_and_gradient(plain)[0]) < 1e-5


def test_it_keeps_less_for_the_backward_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny("llama", tmp_path, wordless_tokenizer())
    monkeypatch.setattr(cpu, "_WEIGHTS", 0)  # attention's weights are the same on both sides, but wider on some processors

    def kept(base: Any) -> int:
        weights = {parameter.data_ptr() for parameter in base.parameters()}
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in weights:
                sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            states = run(base, torch.randn(FOREST.num_tokens, 32, dtype=torch.bfloat16, requires_grad=True))
        assert states.requires_grad
        return sum(sizes.values())

    mine, plain = kept(fused(folder, torch.bfloat16)), kept(attached(folder, torch.bfloat16))
    assert mine < 0.8 * plain


def test_gradient_checkpointing_gives_the_same_gradients(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path, wordless_tokenizer())
    base = fused(folder)
    states, gradient = states_and_gradient(base)
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    base.train()
    again, checkpointed = states_and_gradient(base)
    assert torch.equal(states, again)
    assert torch.equal(gradient, checkpointed)

    rows = torch.randn(states.shape, requires_grad=True)
    plain = fused(folder)
    (expected,) = torch.autograd.grad(run(plain, rows).sum(), rows)
    (found,) = torch.autograd.grad(checkpoint(run, plain, rows, use_reentrant=False).sum(), rows)
    assert torch.equal(found, expected)


def test_the_compiler_sees_the_models_own_layers(tmp_path: Path) -> None:
    base = fused(save_tiny("llama", tmp_path, wordless_tokenizer()))
    states, gradient = states_and_gradient(base)
    torch.compiler.reset()
    compiled = states_and_gradient(torch.compile(base, backend="eager"))
    assert error(compiled[0], states) < 1e-5
    assert error(compiled[1], gradient) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pack", [False, True])
def test_a_product_is_the_linear_layer_and_its_gradient(dtype: torch.dtype, pack: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, grad = (torch.randn(shape, generator=generator).to(dtype) for shape in ((37, 80), (48, 80), (48,), (37, 48)))
    product = Product(weight, bias, pack)
    rounding = 4 * torch.finfo(dtype).eps
    assert error(product(x), F.linear(x.double(), weight.double(), bias.double())) < rounding
    assert error(product.back(grad), grad.double() @ weight.double()) < rounding
    every_second = torch.stack([x, x], 1)[:, 0]
    assert torch.equal(product(every_second), product(x))


@pytest.mark.parametrize("normed", ["before", "after", "both", "heads", "rows"])
@pytest.mark.parametrize("gate", range(len(GATES)))
def test_hand_written_gradients_are_those_of_finite_differences(normed: str, gate: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def norm(width: int) -> Norm:
        return Norm(random(width), 1e-2)

    before = ("before_attention", "before_mlp")
    after = ("after_attention", "after_mlp")
    width, heads, kv_heads, head_dim, wide = 6, 2, 1, 4, 5
    norms: dict[str, Norm | None] = {
        name: norm(width) for name in {"before": before, "after": after, "both": (*before, *after)}.get(normed, before)
    }
    if normed in ("heads", "rows"):
        whole = normed == "rows"
        norms |= {"query_norm": norm(heads * head_dim if whole else head_dim), "key_norm": norm(kv_heads * head_dim if whole else head_dim)}
    shapes = [
        (heads * head_dim, width),
        *[(kv_heads * head_dim, width)] * 2,
        (width, heads * head_dim),
        *[(wide, width)] * 2,
        (width, wide),
    ]
    products = [Product(random(*shape), random(shape[0])) for shape in shapes]
    layer = FrozenLayer(*products, GATES[gate], head_dim, **norms)
    hidden, attended = random(3, width).requires_grad_(), random(3, heads, head_dim).requires_grad_()
    cos, sin = random(3, 1, head_dim), random(3, 1, 2)  # half of the dimensions are rotary
    assert torch.autograd.gradcheck(lambda x: layer.projected(x, cos, sin), (hidden,))
    assert torch.autograd.gradcheck(layer.completed, (attended, hidden))
