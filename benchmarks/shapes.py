"""The model that speed is measured on where the weights do not matter: a Llama of 12 layers, and the same without Promptmill."""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from prompt_core.backbone import Backbone, load_backbone
from prompt_core.backbone.locate import locate
from prompt_core.encoded import Encoded
from prompt_core.manifest import BackboneIdentity
from prompt_core.task import BackboneSpec

_CONFIG = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


@cache
def _folder() -> str:
    """Random weights with SmolLM2's tokenizer, as `save_pretrained` writes them; gone when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="llama12-")
    _kept.append(folder)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**_CONFIG, bos_token_id=0, eos_token_id=0, pad_token_id=0))
    model.save_pretrained(folder.name)
    transformers.AutoTokenizer.from_pretrained(locate(BackboneSpec(name="smollm2"), Path()).source).save_pretrained(folder.name)
    return folder.name


_kept: list[tempfile.TemporaryDirectory[str]] = []


def llama12(dtype: str = "float32") -> Backbone:
    """12 layers, width 576, 9 heads, 3 KV heads of 64, MLP 1536, vocabulary 49,152."""
    return load_backbone(BackboneSpec(name=_folder(), dtype=dtype))


def plain_llama12(dtype: torch.dtype = torch.float32) -> Any:
    """The same weights as transformers runs them, with its default attention."""
    return transformers.AutoModelForCausalLM.from_pretrained(_folder(), dtype=dtype).eval().requires_grad_(False)


def backbone_of(model: Any) -> Backbone:
    """A copy of a transformers model as a backbone without a text tokenizer, for token ids."""
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"t0": 0}, unk_token="t0"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="t0")
    name = type(model).__name__
    identity = BackboneIdentity(
        name="random", revision=None, architecture=name, dtype=str(model.dtype)[6:], weights="0" * 64, tokenizer="0" * 64
    )
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    return Backbone(model, tokenizer, causal=True, pool_first=False, identity=identity, origin=None)


def random_ids(low: int, high: int, count: int, seed: int = 0) -> list[tuple[int, ...]]:
    """`count` sequences of `low` to `high` random token ids."""
    generator = random.Random(seed)
    return [tuple(generator.randrange(1000, 40_000) for _ in range(generator.randint(low, high))) for _ in range(count)]


def random_texts(low: int, high: int, count: int, seed: int, vocabulary: int = 40_000) -> list[Encoded]:
    """`count` examples of `low` to `high` random tokens below `vocabulary`; the second half is the target."""
    ids = [tuple(token % vocabulary for token in text) for text in random_ids(low, high, count, seed)]
    return [Encoded(text[: len(text) // 2], text[len(text) // 2 :], False) for text in ids]


def padded(batch: Sequence[Encoded], device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids, mask and labels, each int64 [examples, longest], as PEFT's users have them: on the right, -100 but for the targets."""
    longest = max(len(e.input) + len(e.target) for e in batch)
    ids, mask, labels = torch.zeros(3, len(batch), longest, dtype=torch.int64)
    labels -= 100
    for row, example in enumerate(batch):
        sequence = torch.tensor(example.input + example.target)
        ids[row, : len(sequence)], mask[row, : len(sequence)] = sequence, 1
        labels[row, len(example.input) : len(sequence)] = sequence[len(example.input) :]
    return ids.to(device), mask.to(device), labels.to(device)
