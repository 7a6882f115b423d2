"""Builders for tests that need a model: tiny random models as folders, tasks over them, and textbook computations to compare with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import tokenizers
import torch
import transformers
from fsspec.implementations.memory import MemoryFileSystem
from torch import Tensor
from transformers.masking_utils import eager_mask

from prompt_core.backbone import Backbone, load_backbone
from prompt_core.backbone.locate import locate
from prompt_core.data.clean import example_id
from prompt_core.prompts import Prompt, Tree, hidden_states
from prompt_core.task import BackboneSpec, TaskSpec
from prompt_core.task_file import parse_task

_WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256}
# Weights far larger than usual: attention is then sharp, and a wrong mask cannot hide behind rounding.
_SHARP = {"initializer_range": 0.3}
_BASE = {**_WIDTHS, **_SHARP, "intermediate_size": 64}
_DECODER = {**_BASE, "num_key_value_heads": 2}
_WIDE_HEADS = {**_DECODER, "head_dim": 16}
_LOCAL_THEN_GLOBAL = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
_QWEN = {"use_sliding_window": True, **_LOCAL_THEN_GLOBAL}
_GEMMA = {**_WIDE_HEADS, **_LOCAL_THEN_GLOBAL, "query_pre_attn_scalar": 8}
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, **_SHARP}
_OPT = {**_WIDTHS, "init_std": 0.3, "ffn_dim": 64}
_EXPERTS = {"num_experts_per_tok": 2}
_EYE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
_ROTARY_HALF = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
}
_Sizes = dict[str, tuple[type[Any], dict[str, Any]]]
# The families that Promptmill promises, each with what is peculiar to it switched on.
CAUSAL: _Sizes = {
    "llama": (transformers.LlamaConfig, {**_DECODER, "head_dim": 8}),
    "mistral": (transformers.MistralConfig, {**_DECODER, "head_dim": 8, "sliding_window": 4}),
    "qwen2": (transformers.Qwen2Config, _DECODER),
    "qwen2_local": (transformers.Qwen2Config, {**_DECODER, **_QWEN}),
    "qwen3": (transformers.Qwen3Config, {**_WIDE_HEADS, **_QWEN}),
    "qwen3_moe": (transformers.Qwen3MoeConfig, {**_WIDE_HEADS, **_EXPERTS, "num_experts": 4, "moe_intermediate_size": 16}),
    "gemma2": (transformers.Gemma2Config, {**_GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0}),
    "gemma3": (transformers.Gemma3TextConfig, {**_GEMMA, "final_logit_softcapping": 5.0}),
    "gemma3_eyes": (
        transformers.Gemma3Config,
        {"text_config": {**_GEMMA, "vocab_size": 256}, "vision_config": _EYE, "mm_tokens_per_image": 4, "image_token_index": 255},
    ),
    "phi3": (transformers.Phi3Config, {**_DECODER, "sliding_window": 4, "rope_parameters": _ROTARY_HALF}),
    "phi3_long": (transformers.Phi3Config, {**_DECODER, "original_max_position_embeddings": 64, "rope_parameters": _LONGROPE}),
    "gpt_neox": (transformers.GPTNeoXConfig, {**_BASE, "rotary_pct": 0.25}),
    "gpt2": (transformers.GPT2Config, _GPT),
    "opt": (transformers.OPTConfig, {**_OPT, "word_embed_proj_dim": 32}),
    "opt_narrow": (transformers.OPTConfig, {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "smollm3": (transformers.SmolLM3Config, {**_DECODER, **_QWEN, "no_rope_layers": [1, 0]}),
    "olmo2": (transformers.Olmo2Config, _DECODER),
    "cohere": (transformers.CohereConfig, {**_DECODER, "logit_scale": 0.25}),
    "granite": (transformers.GraniteConfig, {**_DECODER, "logits_scaling": 8.0, "embedding_multiplier": 3.0, "attention_multiplier": 0.2}),
    "gpt_oss": (transformers.GptOssConfig, {**_WIDE_HEADS, **_LOCAL_THEN_GLOBAL, **_EXPERTS, "num_local_experts": 4}),
}
_ROBERTA = {**_BASE, "pad_token_id": 1}
ENCODERS: _Sizes = {
    "bert": (transformers.BertConfig, _BASE),
    "roberta": (transformers.RobertaConfig, _ROBERTA),
    "xlm_roberta": (transformers.XLMRobertaConfig, {**_ROBERTA, "type_vocab_size": 1}),
    "electra": (transformers.ElectraConfig, {**_BASE, "embedding_size": 16}),
    "distilbert": (
        transformers.DistilBertConfig,
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 256, **_SHARP},
    ),
    "modernbert": (
        transformers.ModernBertConfig,
        {**_BASE, "local_attention": 8, "layer_types": ["full_attention", "sliding_attention"], "cls_token_id": 0, "sep_token_id": 0},
    ),
}
REFUSED: _Sizes = {
    "bloom": (transformers.BloomConfig, {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "codegen": (transformers.CodeGenConfig, {**_GPT, "n_ctx": 256, "rotary_dim": 8}),
    "xglm": (
        transformers.XGLMConfig,
        {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 256},
    ),
    "deberta_v2": (transformers.DebertaV2Config, _BASE),
    "mamba": (transformers.MambaConfig, {"hidden_size": 32, "num_hidden_layers": 2}),
    "llama_chunked": (transformers.LlamaConfig, {**_DECODER, "layer_types": ["full_attention", "chunked_attention"]}),
    "phi": (transformers.PhiConfig, _DECODER),
    "bert_decoder": (transformers.BertConfig, {**_BASE, "is_decoder": True}),
    "phimoe": (transformers.PhimoeConfig, {**_DECODER, **_EXPERTS, "num_local_experts": 4, "sliding_window": 64}),
    "modernbert_decoder": (transformers.ModernBertDecoderConfig, {**_BASE, "cls_token_id": 0, "sep_token_id": 0}),
    "gemma3_embedding": (transformers.Gemma3TextConfig, {**_GEMMA, "use_bidirectional_attention": True}),
}


@cache
def tokenizer_of(embedded: str) -> Any:
    """The tokenizer of an embedded model."""
    return transformers.AutoTokenizer.from_pretrained(locate(BackboneSpec(name=embedded), Path()).source)


@cache
def wordless_tokenizer() -> Any:
    """A tokenizer of 256 tokens `t0`, `t1`, ..., for models that are given ids: theirs is saved and loaded at once."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"t{i}": i for i in range(256)}, unk_token="t0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="t0", pad_token="t1")


@cache
def melting_tokenizer() -> Any:
    """A tokenizer that splits as Qwen2's does: punctuation and the line breaks behind it are one token."""
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    pre, bpe = tokenizers.pre_tokenizers, tokenizers.Tokenizer(tokenizers.models.BPE())
    bytes_alone = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre.Sequence([pre.Split(tokenizers.Regex(pattern), "isolated"), bytes_alone])
    bpe.decoder = tokenizers.decoders.ByteLevel()
    lines = ["\n\n".join(f"It is good{mark}" for mark in ("", *".!?;:)", "."))] * 9
    alphabet = pre.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(lines, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end|>", pad_token="<|end|>", bos_token="<|end|>")


def save_tiny(architecture: str, folder: Path, tokenizer: Any = None) -> Path:
    """A random model of two layers as `save_pretrained` writes it, by default with the tokenizer of an embedded model."""
    encoder = architecture in ENCODERS
    tokenizer = tokenizer or tokenizer_of("minilm" if encoder else "smollm2")
    config_class, sizes = (CAUSAL | ENCODERS | REFUSED)[architecture]
    config = config_class(**{"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, **sizes})
    bare = encoder or architecture in ("deberta_v2", "bert_decoder")
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
    """Token ids of sequences with these lengths, none of the first twentieth of the vocabulary, where special tokens are."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocabulary // 20, vocabulary, (length,), generator=generator) for length in lengths]


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


def encoder_behind_cache(model: Any, keys: Tensor, values: Tensor, ids: Tensor) -> Tensor:
    """The same for an encoder: in each layer, the keys and values stand before the text's own, and no window hides them."""
    layers = iter(zip(keys, values, strict=True))

    def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **_: Any) -> tuple[Tensor, None]:
        prefix_k, prefix_v = (states.transpose(0, 1)[None] for states in next(layers))
        scores = q @ k.transpose(-1, -2) * scaling
        scores = scores if mask is None else scores + mask
        scores = torch.cat([q @ prefix_k.transpose(-1, -2) * scaling, scores], -1)
        return (scores.softmax(-1) @ torch.cat([prefix_v, v], 2)).transpose(1, 2), None

    transformers.AttentionInterface.register("behind_cache", attend)
    transformers.AttentionMaskInterface.register("behind_cache", eager_mask)
    model.set_attn_implementation("behind_cache")
    states: Tensor = model(input_ids=ids[None]).last_hidden_state[0]
    model.set_attn_implementation("eager")
    return states


def assert_equal_to_rounding(found: Tensor | Sequence[Tensor], expected: Tensor | Sequence[Tensor]) -> None:
    """Equal to 1e-5 of the largest expected number (float32)."""
    if not isinstance(found, Tensor):
        found, expected = torch.cat(list(found)), torch.cat(list(expected))
    assert isinstance(expected, Tensor)
    assert found.shape == expected.shape
    error = float((found - expected).detach().abs().max())
    assert error <= 1e-5 * max(1.0, float(expected.detach().abs().max())), f"differs by {error}"


@contextmanager
def memory_fails(fault: Exception) -> Iterator[None]:
    """Stores in fsspec's memory cannot be listed or read in this block, as when the network to a bucket breaks."""

    def fail(*_: Any, **__: Any) -> None:
        raise fault

    with pytest.MonkeyPatch.context() as patch:
        for method in ("ls", "cat_file"):
            patch.setattr(MemoryFileSystem, method, fail)
        yield
