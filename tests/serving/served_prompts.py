"""Small prompts on a tiny random model that nobody had to tune, and stores that hold them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from helpers import a_task, random_prefix

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.manifest import DataRecord, Manifest, TuningRecord
from prompt_core.methods import PromptSpec, TuneSpec
from prompt_core.ready import ReadyPrompt
from prompt_core.store import PromptStore
from prompt_core.text.index import embedding_model
from prompt_core.text.prompt import Demonstration, Retrieval, TextPrompt

TEXTS = [f"Text number {i}, {'good' if i % 2 else 'bad'}" for i in range(6)]
PASSED: dict[str, Any] = {"verdict": {"passed": True}}


def a_prompt(
    backbone: Backbone,
    name: str,
    *,
    kind: Literal["soft", "deep"] = "soft",
    writes: bool = False,
    tokens: int = 5,
    seed: int = 0,
    labels: Sequence[str] = ("bad", "good"),
    template: Any = "{{ text }}\nIt is",
    max_new_tokens: int = 8,
    beams: int = 1,
) -> TunedPrompt:
    """A prompt of random numbers: a classifier by label words or anchors, or one that writes."""
    generator = torch.Generator().manual_seed(seed)
    objective = "generate" if writes else "classify"
    parts = {"prompt": {"kind": kind, "tokens": tokens}, "evaluate": {"beams": beams}}
    task = a_task(backbone.identity.name, name=name, template=template, objective=objective, **parts)
    if kind == "soft":
        chosen = torch.randint(len(backbone.vocabulary), (tokens,), generator=generator)
        tensors = {"embeddings": backbone.vocabulary[chosen].float().clone()}
    else:
        tensors = dict(zip(("keys", "values"), random_prefix(backbone, tokens, seed), strict=True))
    if not writes and not backbone.causal:
        tensors["anchors"] = torch.randn(len(labels), backbone.hidden_size, generator=generator)
    manifest = Manifest(
        name=name,
        kind=kind,
        tokens=tokens,
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        task=task.without_places(backbone.identity.name),
        labels=() if writes else tuple(labels),
        max_new_tokens=max_new_tokens if writes else None,
        backbone=backbone.identity,
        tuning=TuningRecord(steps=1, kept_step=1, train_loss=(1.0,), validation=()),
        truncated_rows=0,
        data=DataRecord(train_rows=1, train="d", validation_rows=0, validation="d"),
        versions={},
        device="cpu",
    )
    return TunedPrompt(manifest, {key: tensor.contiguous() for key, tensor in tensors.items()}, backbone.origin)


def a_retrieving_prompt(backbone: Backbone, name: str, pool: Sequence[tuple[str, str]], count: int = 2) -> TunedPrompt:
    """A text prompt that shows each input the nearest of its pool of texts and labels."""
    prompt = a_prompt(backbone, name)
    task = prompt.task.model_copy(update={"prompt": PromptSpec(kind="text"), "tune": TuneSpec(max_tokens=96)})
    text = TextPrompt(
        template="{{ text }}\nIt is",
        demonstrations=tuple(Demonstration(fields={"text": text}, answer=label) for text, label in pool),
        retrieval=Retrieval(count=count, balanced=False, model=embedding_model(backbone)),
    )
    changed = {"kind": "text", "text": text, "tuning": None, "parameters": 0, "task": task.without_places(backbone.identity.name)}
    return TunedPrompt(prompt.manifest.model_copy(update=changed), {}, backbone.origin)


def publish(store: PromptStore, prompt: TunedPrompt) -> int:
    """Publish and promote to production."""
    version = store.publish(prompt, PASSED)
    store.promote(prompt.name, version)
    return version


def a_served_store(folder: Path, backbone: Backbone) -> PromptStore:
    """A store with two classifiers and two writers in production."""
    store = PromptStore(folder)
    for number, (name, kind, writes) in enumerate(
        (("mood", "soft", False), ("tone", "deep", False), ("reply", "soft", True), ("story", "deep", True))
    ):
        publish(store, a_prompt(backbone, name, kind=kind, writes=writes, tokens=3 + number, seed=number))  # type: ignore[arg-type]
    return store


def ready_on(backbone: Backbone) -> Callable[[TunedPrompt], ReadyPrompt]:
    """What makes prompts ready on a model that is loaded already."""
    return lambda tuned: ReadyPrompt.of(tuned, backbone)
