"""Makes the layers of a frozen model cheaper without changing what they compute.

A layer is taken over if it has the structure of a Llama-like decoder layer (Llama, Mistral, Qwen 2 and 3, Phi 3, Gemma,
OLMo 2) and gives, on a real forward, the same states as the `FrozenLayer` built from its weights. Any other layer stays
as it is.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from prefix_attention import PromptForest
from torch import Tensor, nn
from transformers import PreTrainedModel

from prompt_core.backbone.attention import AttentionPass, ForestPass
from prompt_core.backbone.frozen import GATES, FrozenLayer, Gate, Norm
from prompt_core.backbone.probe import RAISED
from prompt_core.backbone.product import Product, packs

_log = logging.getLogger(__name__)
# Of what a layer adds to its input, relative: what float32 rounds, and what only another formula exceeds in bfloat16.
_EXACT, _ROUNDED = 1e-4, 5e-2
_LENGTHS, _PARENTS, _POSITIONS = (5, 6, 7), (-1, 0, 0), 2048
_PRE = {"before_attention": "input_layernorm", "before_mlp": "post_attention_layernorm"}
_POST = {"after_attention": "post_attention_layernorm", "after_mlp": "post_feedforward_layernorm"}
_BOTH = {"before_attention": "input_layernorm", "before_mlp": "pre_feedforward_layernorm", **_POST}
_HEAD_NORMS = {"query_norm": "q_norm", "key_norm": "k_norm"}
_NORMS = {frozenset(norms.values()): norms for norms in (_PRE, _POST, _BOTH)}
_ATTENTIONS = ({"q_proj", "k_proj", "v_proj", "o_proj"}, {"qkv_proj", "o_proj"})
_MLPS = ({"gate_proj", "up_proj", "down_proj", "act_fn"}, {"gate_up_proj", "down_proj", "activation_fn"})


@dataclass(frozen=True)
class _Fusion:
    """What a fused layer runs on: its pieces, and the scores that its attention module asks for."""

    frozen: FrozenLayer
    scores: dict[str, Any]

    def __deepcopy__(self, _: dict[int, Any]) -> _Fusion:
        return self  # frozen; and packed weights cannot be copied


@dataclass(frozen=True)
class _Call:
    """What the model passed to a layer."""

    hidden: Tensor
    arguments: dict[str, Any]

    def float(self) -> _Call:
        cos, sin = self.arguments["position_embeddings"]
        return _Call(self.hidden.float(), {**self.arguments, "position_embeddings": (cos.float(), sin.float())})


class _FusedForward(nn.Module):
    """Stands before a decoder layer's own class; the layer's own forward remains for calls that are no packed row."""

    fusion: _Fusion
    self_attn: nn.Module

    def forward(
        self,
        hidden_states: Tensor,
        *args: Any,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        prompt_pass: AttentionPass | None = None,
        **kwargs: Any,
    ) -> Any:
        if prompt_pass is None or position_embeddings is None or len(hidden_states) != 1 or torch.compiler.is_compiling():
            given = {"position_embeddings": position_embeddings, "prompt_pass": prompt_pass, **kwargs}
            return super().forward(hidden_states, *args, **given)
        frozen, hidden = self.fusion.frozen, hidden_states.squeeze(0)
        q, k, v = frozen.projected(hidden, *_turns(position_embeddings, frozen.head_dim, hidden.dtype))
        attended = prompt_pass.attend(self.self_attn, q, k, v, **self.fusion.scores)
        return frozen.completed(attended, hidden, prompt_pass.rows if frozen.last else None).unsqueeze(0)


class _ListeningPass(ForestPass):
    """A forest pass that remembers which scores a layer asked for."""

    scores: dict[str, Any]

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, **scores: Any) -> Tensor:
        self.scores = scores
        return super().attend(module, q, k, v, **scores)


@torch.no_grad()
def fuse_layers(base: PreTrainedModel, position_offset: int) -> int:
    """Give every layer that is proven equal its cheaper forward; returns how many.

    Each layer is compared in its own dtype, and one of every kind in float32.

    Args:
        base: frozen, in evaluation mode, with the attention step attached.
        position_offset: what the model adds to positions.
    """
    layers = [module for module in base.modules() if _has_structure(module)]
    if not layers or getattr(base.config, "clip_qkv", None) is not None:  # clipping shows on rare inputs only
        return 0
    for layer in layers:
        if isinstance(layer, _FusedForward):  # attached before, perhaps with other weights
            layer.__class__ = cast("Any", type(layer).__mro__[2])
    pack = packs([weight for layer in layers for weight in layer.parameters()])
    proven: dict[tuple[Any, ...], bool] = {}
    fused = 0
    calls = _calls(base, layers, position_offset)
    for layer, call in calls.items():
        kind = _kind(layer)
        first = kind not in proven
        if first:
            wide = copy.deepcopy(layer, {id(base.config): base.config}).float()
            proven[kind] = _proven(wide, call.float(), _EXACT, pack=False, gradients=True) is not None
        tolerance = _ROUNDED if call.hidden.dtype in (torch.bfloat16, torch.float16) else _EXACT
        fusion = _proven(layer, call, tolerance, pack, gradients=first) if proven[kind] else None
        if fusion is not None:
            if layer is list(calls)[-1]:
                fusion = replace(fusion, frozen=replace(fusion.frozen, last=True))
            layer.__class__ = _fused_class(cast("Any", type(layer)))
            layer.fusion = fusion  # type: ignore[assignment]
            fused += 1
    _log.debug("%s: %d of %d layers fused", type(base).__name__, fused, len(layers))
    return fused


@cache
def _fused_class(kind: Any) -> Any:
    """A subclass of the same name: transformers knows layers by class and by class name."""
    return type(kind.__name__, (_FusedForward, kind), {})


def _turns(embeddings: tuple[Tensor, Tensor], head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos [S, 1, D] and sin [S, 1, R] of the model's [1, S, R]: what is not rotary turns by nothing."""
    cos, sin = (turn[0, :, None].to(dtype) for turn in embeddings)
    rest = head_dim - cos.shape[-1]
    return F.pad(cos, (0, rest), value=1.0) if rest else cos, sin


def _calls(base: PreTrainedModel, layers: Sequence[nn.Module], position_offset: int) -> dict[nn.Module, _Call]:
    """What one small forward passes to the layers; none where the model cannot run it, which the probe then reports."""
    calls: dict[nn.Module, _Call] = {}

    def listen(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(args) == 1 and isinstance(kwargs.get("position_embeddings"), tuple):
            calls[layer] = _Call(args[0], kwargs)

    vocabulary = base.get_input_embeddings().weight
    forest = PromptForest.from_segments(_LENGTHS, _PARENTS).to(vocabulary.device)
    ids = torch.arange(7, 7 + forest.num_tokens, device=vocabulary.device) % len(vocabulary)
    last = min(getattr(base.config, "max_position_embeddings", None) or _POSITIONS, _POSITIONS) - 1
    positions = torch.linspace(0, last, len(ids), device=vocabulary.device).long() + position_offset
    hooks = [layer.register_forward_pre_hook(listen, with_kwargs=True) for layer in layers]
    try:
        base(input_ids=ids[None], position_ids=positions[None], use_cache=False, prompt_pass=_ListeningPass(forest))
    except RAISED as error:
        _log.debug("%s: nothing fused (%s)", type(base).__name__, error)
        return {}
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _proven(layer: nn.Module, call: _Call, tolerance: float, pack: bool, gradients: bool) -> _Fusion | None:
    """The layer's fusion, if it gives what the layer gives: the states, and with `gradients` also those of its input."""
    frozen = _frozen(layer, pack)
    if frozen is None:
        return None
    attention_pass, turns = call.arguments["prompt_pass"], call.arguments["position_embeddings"]
    try:
        with torch.set_grad_enabled(gradients):
            hidden = call.hidden.detach().requires_grad_(gradients)
            expected = layer(hidden, **call.arguments)
            scores = attention_pass.scores
            q, k, v = frozen.projected(hidden[0], *_turns(turns, frozen.head_dim, hidden.dtype))
            found = frozen.completed(attention_pass.attend(layer.self_attn, q, k, v, **scores), hidden[0])[None]
            same = _agree(found, expected, hidden, tolerance)
            if gradients:
                along = torch.linspace(0, found.numel(), found.numel(), device=found.device).sin().view(found.shape).to(found.dtype)
                slopes = [torch.autograd.grad(states, hidden, along)[0] for states in (found, expected)]
                same &= _agree(slopes[0], slopes[1], along, tolerance)
    except RAISED as error:
        _log.debug("%s: not fused (%s)", type(layer).__name__, error)
        return None
    return _Fusion(frozen, scores) if same and scores["sinks"] is None else None


def _agree(found: Tensor, expected: Tensor, around: Tensor, tolerance: float) -> bool:
    """Whether both differ in the same way, relatively, from what goes around the layer; its last bit is rounding too."""
    rounding = torch.finfo(expected.dtype).eps * expected.double().norm()
    return bool((found.double() - expected.double()).norm() <= tolerance * (expected.double() - around.double()).norm() + rounding)


def _has_structure(layer: nn.Module) -> bool:
    """Whether a module consists of exactly the parts that `FrozenLayer` has."""
    parts = {name: part for name, part in layer.named_children() if not (isinstance(part, nn.Dropout) and part.p == 0)}
    attention, mlp = parts.pop("self_attn", None), parts.pop("mlp", None)
    if attention is None or mlp is None or frozenset(parts) not in _NORMS:
        return False
    heads = {name for name, _ in attention.named_children()}
    linear = [part for module in (attention, mlp) for name, part in module.named_children() if name.endswith("_proj")]
    return (
        heads - set(_HEAD_NORMS.values()) in _ATTENTIONS
        and {name for name, _ in mlp.named_children()} in _MLPS
        and all(type(part) is nn.Linear for part in linear)
        and not any(True for module in (layer, attention, mlp) for _ in module.parameters(recurse=False))
        and not any("forward" in vars(module) for module in layer.modules())  # accelerate's hooks move weights around
        and isinstance(getattr(attention, "head_dim", None), int)
    )


def _frozen(layer: nn.Module, pack: bool) -> FrozenLayer | None:
    """The pieces of a layer that has the structure; None if one of them computes something unknown."""
    attention: Any = layer.self_attn
    mlp: Any = layer.mlp
    slots = _NORMS[frozenset(name for name, _ in layer.named_children() if name.endswith("norm"))]
    modules = {slot: getattr(layer, name) for slot, name in slots.items()}
    modules |= {slot: getattr(attention, name) for slot, name in _HEAD_NORMS.items() if hasattr(attention, name)}
    norms: dict[str, Any] = {slot: _norm(module) for slot, module in modules.items()}
    activation = _gate(mlp.act_fn if hasattr(mlp, "act_fn") else mlp.activation_fn)
    if activation is None or None in norms.values():
        return None
    head_dim: int = attention.head_dim
    if hasattr(attention, "qkv_proj"):
        of_queries = attention.o_proj.in_features
        of_keys = (attention.qkv_proj.out_features - of_queries) // 2
        query, key, value = _split(attention.qkv_proj, [of_queries, of_keys, of_keys], pack)
    else:
        query, key, value = (_product(getattr(attention, name), pack) for name in ("q_proj", "k_proj", "v_proj"))
    if hasattr(mlp, "gate_up_proj"):
        gate, up = _split(mlp.gate_up_proj, [mlp.down_proj.in_features] * 2, pack)
    else:
        gate, up = _product(mlp.gate_proj, pack), _product(mlp.up_proj, pack)
    output, down = _product(attention.o_proj, pack), _product(mlp.down_proj, pack)
    return FrozenLayer(query, key, value, output, gate, up, down, activation, head_dim, **norms)


def _product(linear: nn.Linear, pack: bool) -> Product:
    return Product(linear.weight, linear.bias, pack)


def _split(linear: nn.Linear, sizes: list[int], pack: bool) -> list[Product]:
    biases = [None] * len(sizes) if linear.bias is None else torch.split(linear.bias, sizes)
    return [Product(weight, bias, pack) for weight, bias in zip(torch.split(linear.weight, sizes), biases, strict=True)]


def _norm(module: nn.Module) -> Norm | None:
    """The RMSNorm that a module is, with its weight or one plus it as the scale; None if it is something else."""
    parameters = dict(module.named_parameters())
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if set(parameters) != {"weight"} or parameters["weight"].dim() != 1 or eps is None:
        return None
    weight = parameters["weight"].detach()
    dtype = torch.promote_types(weight.dtype, torch.float32)
    scale = weight.to(dtype)
    x = torch.linspace(-1, 3, 2 * len(scale), dtype=dtype, device=scale.device).sin().view(2, -1)
    x[1] *= 1e-3  # so small that eps shows
    expected = copy.deepcopy(module).to(dtype)(x)
    candidates = (Norm(scale, eps), Norm(1 + scale, eps))
    return next((norm for norm in candidates if torch.allclose(norm(x)[0], expected, rtol=1e-5, atol=1e-6)), None)


def _gate(activation: Any) -> Gate | None:
    x = torch.linspace(-9, 9, 199)
    expected = activation(x)
    return next((gate for gate in GATES if torch.allclose(gate(x, out=torch.empty_like(x)), expected, rtol=1e-5, atol=1e-6)), None)


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    """What makes layers alike: the plain settings of all their modules."""
    simple = (bool, int, float, str, type(None))
    settings = ((name, key, value) for name, module in layer.named_modules() for key, value in vars(module).items())
    return tuple((name, key, value) for name, key, value in settings if isinstance(value, simple) and key != "layer_idx")
