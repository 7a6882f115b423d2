"""Builders for tests that need a model: tiny random models as folders, tasks over them, and textbook computations to compare with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import torch
import transformers
from torch import Tensor

from prompt_core.backbone import Backbone, load_backbone
from prompt_core.backbone.locate import locate
from prompt_core.data.clean import example_id
from prompt_core.prompts import Prompt, Tree, hidden_states
from prompt_core.task import BackboneSpec, TaskSpec, parse_task

_WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256}
# Weights far larger than usual: attention is then sharp, and a wrong mask cannot hide behind rounding.
_SHARP = {"initializer_range": 0.3}
_DECODER = {**_WIDTHS, **_SHARP, "intermediate_size": 64, "num_key_value_heads": 2}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, **_SHARP}
_CONFIGS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, {**_DECODER, "head_dim": 8}),
    "qwen2": (transformers.Qwen2Config, _DECODER),
    "mistral": (transformers.MistralConfig, {**_DECODER, "head_dim": 8, "sliding_window": 4}),
    "gemma2": (transformers.Gemma2Config, {**_DECODER, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}),
    "gpt2": (transformers.GPT2Config, _GPT),
    "gpt_neox": (transformers.GPTNeoXConfig, {**_WIDTHS, **_SHARP, "intermediate_size": 64}),
    "opt": (transformers.OPTConfig, {**_WIDTHS, "init_std": 0.3, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "bert": (transformers.BertConfig, {**_WIDTHS, **_SHARP, "intermediate_size": 64}),
    "bloom": (transformers.BloomConfig, {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "codegen": (transformers.CodeGenConfig, {**_GPT, "n_ctx": 256, "rotary_dim": 8}),
    "xglm": (
        transformers.XGLMConfig,
        {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 256},
    ),
    "mamba": (transformers.MambaConfig, {"hidden_size": 32, "num_hidden_layers": 2}),
    "t5": (transformers.T5Config, {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}),
}


@cache
def tokenizer_of(embedded: str) -> Any:
    """The tokenizer of an embedded model."""
    return transformers.AutoTokenizer.from_pretrained(locate(BackboneSpec(name=embedded), Path()).source)


def save_tiny(architecture: str, folder: Path) -> Path:
    """A random model of two layers with the tokenizer of an embedded model, as `save_pretrained` writes it."""
    tokenizer = tokenizer_of("minilm" if architecture == "bert" else "smollm2")
    config_class, sizes = _CONFIGS[architecture]
    config = config_class(**sizes, vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=0)
    bare = architecture in ("bert", "t5")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = (transformers.AutoModel if bare else transformers.AutoModelForCausalLM).from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def backbone_at(name: str) -> Backbone:
    """A backbone in float32."""
    return load_backbone(BackboneSpec(name=name, dtype="float32"))


def plain_model(folder: str | Path, causal: bool = True) -> Any:
    """The same model without Promptmill: transformers' own eager attention."""
    loader = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    return loader.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval().requires_grad_(False)


def a_task(backbone: str | Path = "minilm", *, template: Any = "{{ text }}", folder: Path = Path(), **parts: Any) -> TaskSpec:
    """A classification task `t` over examples.csv with the columns text and label; `parts` replace sections."""
    content = {
        "name": "t",
        "backbone": {"name": str(backbone), "dtype": "float32"},
        "objective": "classify",
        "template": template,
        "data": {"path": "examples.csv", "target": "label"},
        **parts,
    }
    return parse_task(content, "t.yaml", folder)


def examples(*pairs: tuple[str, str]) -> pl.DataFrame:
    """(text, label) pairs as a side of `Splits`."""
    rows = [(example_id([text]), text, label) for text, label in pairs]
    return pl.DataFrame(rows, schema={"_id": pl.String, "text": pl.String, "label": pl.String}, orient="row")


def states_behind(backbone: Backbone, prompt: Prompt, segments: Sequence[Tensor], parents: Sequence[int] | None = None) -> list[Tensor]:
    """Last hidden states of each segment in a packed row behind a prompt."""
    (states,) = hidden_states(backbone, [Tree(prompt.state(), [ids.tolist() for ids in segments], parents)])
    return list(torch.split(states, [len(ids) for ids in segments]))


def random_ids(*lengths: int, seed: int = 0, vocabulary: int = 20_000) -> list[Tensor]:
    """Token ids of sequences with these lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1000, vocabulary, (length,), generator=generator) for length in lengths]


def random_prefix(backbone: Backbone, tokens: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Keys and values of a deep prefix, each [L, P, Hkv, D]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (backbone.num_layers, tokens, backbone.num_kv_heads, backbone.head_dim)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def behind_rows(model: Any, rows: Tensor, ids: Tensor) -> Tensor:
    """Last hidden states of one sequence alone behind prompt embeddings, concatenated as in any textbook."""
    embedded = torch.cat([rows, model.get_input_embeddings()(ids)])
    states: Tensor = model.base_model(inputs_embeds=embedded[None]).last_hidden_state[0, len(rows) :]
    return states


def behind_cache(model: Any, keys: Tensor, values: Tensor, ids: Tensor) -> Tensor:
    """Last hidden states of one sequence alone behind keys and values, given as transformers' own cache."""
    cache = transformers.DynamicCache()
    for layer, (k, v) in enumerate(zip(keys, values, strict=True)):
        cache.update(k.transpose(0, 1)[None], v.transpose(0, 1)[None], layer)
    positions = torch.arange(keys.shape[1], keys.shape[1] + len(ids))
    states: Tensor = model.base_model(input_ids=ids[None], position_ids=positions[None], past_key_values=cache).last_hidden_state[0]
    return states


def bert_behind_cache(model: Any, keys: Tensor, values: Tensor, ids: Tensor) -> Tensor:
    """The same for a BERT, whose cache transformers does not take: its own layers around dense attention."""
    hidden = model.embeddings(input_ids=ids[None])[0]
    for number, layer in enumerate(model.encoder.layer):
        own = layer.attention.self
        q, k, v = (part(hidden).view(len(ids), own.num_attention_heads, -1) for part in (own.query, own.key, own.value))
        k, v = torch.cat([keys[number], k]), torch.cat([values[number], v])
        weights = (torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
        context = torch.einsum("hqk,khd->qhd", weights, v).flatten(1)
        attended = layer.attention.output(context, hidden)
        hidden = layer.output(layer.intermediate(attended), attended)
    states: Tensor = hidden
    return states


def assert_equal_to_rounding(found: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor]) -> None:
    """Equal to 1e-5 of the largest expected number (float32)."""
    if not isinstance(found, Tensor):
        found, expected = torch.cat(list(found)), torch.cat(list(expected))
    assert isinstance(expected, Tensor)
    assert found.shape == expected.shape
    error = float((found - expected).detach().abs().max())
    assert error <= 1e-5 * max(1.0, float(expected.detach().abs().max())), f"differs by {error}"
