"""Prompts for the benchmarks of prediction and serving: published, but of random numbers, for speed does not depend on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.manifest import DataRecord, Manifest, TuningRecord
from prompt_core.task_file import parse_task

WORDS = """
the parcel came late and wet please tell me where it is now or send my money back today thank you very much indeed
""".split()  # noqa: SIM905
LABELS = ("good", "bad", "late", "lost")


def random_prompt(backbone: Backbone, name: str, tokens: int, seed: int, max_new_tokens: int | None = None) -> TunedPrompt:
    """A prompt of `tokens` soft tokens on a causal model, the embeddings of words at random; for an encoder random keys and values.

    Args:
        max_new_tokens: of one that writes; None for a classifier of `LABELS`.
    """
    generator = torch.Generator().manual_seed(seed)
    task: dict[str, Any] = {
        "name": name,
        "backbone": {"name": backbone.identity.name, "dtype": "float32"},
        "objective": "classify" if max_new_tokens is None else "generate",
        "template": "{{ text }}\nAnswer:",
        "data": {"path": "none.csv", "target": "label"},
        "prompt": {"kind": "soft" if backbone.causal else "deep", "tokens": tokens},
    }
    if backbone.causal:
        words = " ".join(random_sentences(tokens, 2, 4, seed))
        tensors = {"embeddings": backbone.vocabulary[backbone.tokenizer(words).input_ids[:tokens]].float().clone()}
    else:
        shape = (backbone.num_layers, tokens, backbone.num_kv_heads, backbone.head_dim)
        tensors = {part: torch.randn(shape, generator=generator) for part in ("keys", "values")}
        tensors["anchors"] = torch.randn(len(LABELS), backbone.hidden_size, generator=generator)
    manifest = Manifest(
        name=name,
        kind="soft" if backbone.causal else "deep",
        tokens=tokens,
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        task=parse_task(task, "benchmark", Path()).without_places(backbone.identity.name),
        labels=LABELS if max_new_tokens is None else (),
        max_new_tokens=max_new_tokens,
        backbone=backbone.identity,
        tuning=TuningRecord(steps=1, kept_step=1, train_loss=(1.0,), validation=()),
        truncated_rows=0,
        data=DataRecord(train_rows=1, train="none", validation_rows=0, validation="none"),
        versions={},
        device=backbone.device.type,
    )
    return TunedPrompt(manifest, tensors, backbone.origin)


def random_sentences(count: int, low: int, high: int, seed: int = 0) -> list[str]:
    """Sentences of `low` to `high` plain words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high + 1, (count,), generator=generator).tolist()
    chosen: Sequence[int] = torch.randint(len(WORDS), (sum(lengths),), generator=generator).tolist()
    words = iter(chosen)
    return [" ".join(WORDS[next(words)] for _ in range(length)) for length in lengths]
