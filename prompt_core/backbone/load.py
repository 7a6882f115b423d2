"""From a task's backbone to the loaded, frozen model: once per process, in the asked precision, on the asked device."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from prompt_core.backbone.identity import tokenizer_digest, weights_digest
from prompt_core.backbone.locate import Located, locate
from prompt_core.backbone.model import Backbone
from prompt_core.backbone.quantize import Quantization, bitsandbytes_config, keep_differentiable
from prompt_core.backbone.seq2seq import EncoderDecoder
from prompt_core.errors import PromptmillError
from prompt_core.manifest import BackboneIdentity
from prompt_core.task import BackboneSpec

_log = logging.getLogger("promptmill")
_POOLING = "1_Pooling/config.json"  # of sentence-transformers
_CHECK_SOURCE = "Check the name, the revision and the files."
_Kind = Literal["causal", "encoder", "encoder-decoder"]
_LOADERS: dict[_Kind, Any] = {"causal": AutoModelForCausalLM, "encoder": AutoModel, "encoder-decoder": AutoModelForSeq2SeqLM}


@dataclass(frozen=True)
class _Settings:
    """How to load, with every `auto` decided: what comes to the same shares one model."""

    revision: str | None
    kind: _Kind
    dtype: torch.dtype
    device: torch.device
    device_map: str | None
    quantization: Quantization | None


def load_backbone(spec: BackboneSpec, folder: Path | None = None) -> Backbone:
    """The frozen model of a task, loaded once per process.

    Args:
        spec: name, revision, precision and place; `dtype` may also be that of a `BackboneIdentity`.
        folder: what a relative path starts from; default: the current folder.

    Raises:
        PromptmillError: it cannot be found or read, there is no such device, or its architecture fails the probe.
    """
    located = locate(spec, folder or Path())
    where = f"backbone: {located.public_name}"
    device = _device(spec.device, where)
    with _quiet(), _one_line(where):
        config = AutoConfig.from_pretrained(located.source, **_from_where(located, spec.revision))
    kind = _kind(config, where)
    dtype = _dtype(spec.dtype.partition("+")[0], kind, device)
    return _load(located, _Settings(spec.revision, kind, dtype, device, spec.device_map, spec.quantization))


@lru_cache(maxsize=2)
def _load(located: Located, settings: _Settings) -> Backbone:
    where = f"backbone: {located.public_name}"
    source = _from_where(located, settings.revision)
    quantization, options = settings.quantization, {}
    if quantization is not None:
        options["quantization_config"] = bitsandbytes_config(quantization, settings.dtype, where)
    with _quiet(), _one_line(where, "Check that bitsandbytes runs on this device." if quantization else _CHECK_SOURCE):
        model, found = _LOADERS[settings.kind].from_pretrained(
            located.source,
            dtype=settings.dtype,
            device_map=settings.device_map or str(settings.device),
            attn_implementation="eager",
            use_safetensors=True,
            output_loading_info=True,
            **source,
            **options,
        )
        tokenizer = AutoTokenizer.from_pretrained(located.source, **source)
        files = _snapshot(located.source, settings.revision) if located.is_hub else Path(located.source)
        if located.is_hub and settings.kind == "encoder":
            _fetch_pooling(located.source, files)
    _refuse_missing(found["missing_keys"], where)
    keep_differentiable(model)
    identity = BackboneIdentity(
        name=located.public_name,
        revision=files.name if located.is_hub else settings.revision,
        architecture=type(model).__name__,
        dtype="+".join(filter(None, (str(settings.dtype).removeprefix("torch."), quantization))),
        weights=weights_digest(files, located.weights, quantization),
        tokenizer=tokenizer_digest(files),
    )
    with _quiet():
        if settings.kind == "encoder-decoder":
            return EncoderDecoder(model, tokenizer, identity, located.origin)
        return Backbone(model, tokenizer, settings.kind == "causal", _pools_first(files), identity, located.origin)


def _from_where(located: Located, revision: str | None) -> dict[str, Any]:
    """What every `from_pretrained` gets: the revision of a hub id, and never a model's own code."""
    return {"trust_remote_code": False} | ({"revision": revision} if located.is_hub else {})


def _refuse_missing(names: Iterable[str], where: str) -> None:
    """transformers draws absent weights at random and goes on. Only a pooler may be absent: `Backbone.pool` replaces it."""
    missing = sorted(name for name in names if "pooler" not in name)
    if missing:
        raise PromptmillError(where, f"its files lack {len(missing)} weights, the first is {missing[0]}", "Fetch or save the model again.")


def _pools_first(folder: Path) -> bool:
    """Whether a sentence encoder's own settings name its first token as the pooled state."""
    file = folder / _POOLING
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return bool(settings.get("pooling_mode_cls_token")) or settings.get("pooling_mode") == "cls"  # as written before and since 2026


def _snapshot(hub_id: str, revision: str | None) -> Path:
    """The folder that a hub id was loaded from, named after the commit."""
    return Path(hf_hub_download(hub_id, "config.json", revision=revision, local_files_only=True)).parent


def _fetch_pooling(hub_id: str, folder: Path) -> None:
    """Put a sentence encoder's pooling settings into its snapshot, if it has some: transformers leaves them at the hub."""
    try:
        hf_hub_download(hub_id, _POOLING, revision=folder.name)
    except LocalEntryNotFoundError:
        if try_to_load_from_cache(hub_id, _POOLING, revision=folder.name) is None:
            what = "backbone %s: how it pools is not in the hub's cache and the hub is out of reach. The mean of its states is taken."
            _log.warning(what, hub_id)
    except EntryNotFoundError:
        pass


def _kind(config: PretrainedConfig, where: str) -> _Kind:
    kinds: dict[_Kind, Any] = (
        {"encoder-decoder": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES}
        if getattr(config, "is_encoder_decoder", False)
        else {"encoder": MODEL_FOR_MASKED_LM_MAPPING_NAMES, "causal": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    )
    for kind, names in kinds.items():
        if config.model_type in names:
            return kind
    what = f'model type "{config.model_type}" is no causal model, encoder or encoder-decoder of texts'
    raise PromptmillError(where, what, "Choose another model.")


def _device(name: str, where: str) -> torch.device:
    count = torch.cuda.device_count()
    auto = "cuda" if count else "cpu"
    kind, _, number = (auto if name == "auto" else name).partition(":")
    if kind == "cpu":
        return torch.device(kind)
    if int(number or 0) >= count:
        raise PromptmillError(
            f"{where}: device", f"{name}, but torch sees {count} GPUs here", "Use auto, cpu or the number of one of them."
        )
    return torch.device(kind, int(number or 0))


def _dtype(name: str, kind: _Kind, device: torch.device) -> torch.dtype:
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if kind == "causal" and fast else torch.float32


@contextmanager
def _one_line(where: str, fix: str = _CHECK_SOURCE) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # transformers, safetensors, bitsandbytes and the hub client each raise their own kinds
        reason = " ".join(str(error).split())[:300]
        raise PromptmillError(where, f"cannot be loaded ({reason})", fix) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps transformers' load bars and advice off the terminal, where our own progress stands."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()
