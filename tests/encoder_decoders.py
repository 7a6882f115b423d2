"""Tiny random encoder-decoders, and what they make of one example alone, computed without Promptmill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers.masking_utils import eager_mask

WORDS = ["Sort", "this", "The", "My", "box", "parcel", "letter", "driver", "door", "street", "is", "late", "broken", "Kind", ":"]
_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
_T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
_BART = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
_BART |= {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64, "init_std": 0.3}
_SIZES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    # The first T5 scales what its decoder gives; 1.1 does not, and its linear layers are gated.
    "t5": (transformers.T5Config, _T5),
    "t5_gated": (transformers.T5Config, {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart": (transformers.BartConfig, {**_BART, "scale_embedding": True}),
    "pegasus": (transformers.PegasusConfig, {**_BART, "scale_embedding": True}),
    "longt5": (transformers.LongT5Config, _T5),
}
FAMILIES = ("t5", "t5_gated", "bart")


def worded_tokenizer(leading: bool) -> Any:
    """A tokenizer of WORDS and `t0` to `t199` that ends a text with </s>, as T5's does, and begins it with <s>, as BART's does too."""
    words = {word: i for i, word in enumerate([*_SPECIAL, *WORDS, *(f"t{i}" for i in range(200))])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = TemplateProcessing(single="<s> $A </s>" if leading else "$A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def save_encoder_decoder(family: str, folder: Path, **changes: Any) -> Path:
    """A random model as `save_pretrained` writes it, with a tokenizer of the family's kind."""
    config_class, sizes = _SIZES[family]
    tokenizer = worded_tokenizer(leading="t5" not in family)
    start = 0 if "t5" in family else 2
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": start, "forced_eos_token_id": None}
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = transformers.AutoModelForSeq2SeqLM.from_config(config_class(**{"vocab_size": len(tokenizer), **tokens, **sizes, **changes}))
        if family == "t5_gated":
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def plain_encoder_decoder(folder: Path) -> Any:
    """The same model without Promptmill."""
    loader = transformers.AutoModelForSeq2SeqLM
    return loader.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval().requires_grad_(False)


def alone(
    model: Any, source: Sequence[int], target: Sequence[int], rows: Tensor | None = None, prefix: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """States of the encoder for the source and of the decoder for the target: one example, behind rows or keys and values."""
    embedded = model.get_input_embeddings()(torch.tensor(source))
    rows = embedded[:0] if rows is None else rows
    encoder, decoder = model.get_encoder(), model.get_decoder()
    if prefix is not None:
        behind(model, *prefix)
    states = encoder(inputs_embeds=torch.cat([rows, embedded])[None]).last_hidden_state
    model.set_attn_implementation("eager")
    written = decoder(input_ids=torch.tensor(target)[None], encoder_hidden_states=states, use_cache=False).last_hidden_state
    return states[0, len(rows) :], written[0]


def behind(model: Any, keys: Tensor, values: Tensor) -> None:
    """From now on each layer that attends takes the next keys and values before its own, which alone have positions."""
    layers = iter(zip(keys, values, strict=True))

    def attend(
        module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, position_bias: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        prefix_k, prefix_v = (states.transpose(0, 1)[None] for states in next(layers))
        scores = q @ torch.cat([prefix_k, k], 2).transpose(-1, -2) * scaling
        for bias in (position_bias, mask):
            if bias is not None:
                scores[..., prefix_k.shape[2] :] += bias
        return (scores.softmax(-1) @ torch.cat([prefix_v, v], 2)).transpose(1, 2), None

    transformers.AttentionInterface.register("behind", attend)
    transformers.AttentionMaskInterface.register("behind", eager_mask)
    model.set_attn_implementation("behind")
