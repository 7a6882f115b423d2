"""The loaded backbone: packed rows in, hidden states and logits out, all weights frozen."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from prompt_core.artifact import BackboneIdentity
from prompt_core.backbone.attention import NAME, AttentionPass
from prompt_core.backbone.identity import tokenizer_digest, weights_digest
from prompt_core.backbone.locate import Located, locate
from prompt_core.backbone.probe import probe
from prompt_core.errors import PromptmillError
from prompt_core.task import BackboneSpec


class Backbone:
    """A frozen transformers model whose attention is the packed attention step.

    Attributes:
        identity: name, architecture, dtype and content digests.
        origin: path of a local backbone, else None.
        tokenizer: the model's own.
        causal: whether it is a causal language model; else a bidirectional encoder.
        num_layers, num_kv_heads, head_dim, hidden_size: the shape of a prompt for it.
        dtype, device: of the weights.
        logit_cap: logits become cap * tanh(logit / cap); None for no cap.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        causal: bool,
        pool_first: bool,
        identity: BackboneIdentity,
        origin: str | None,
    ) -> None:
        self.identity, self.origin, self.tokenizer, self.causal, self._pool_first = identity, origin, tokenizer, causal, pool_first
        self._model = model.eval().requires_grad_(False)
        self._base: PreTrainedModel = model.base_model
        self._embed = model.get_input_embeddings()
        model.set_attn_implementation(NAME)
        config = model.config
        if not getattr(config, "num_attention_heads", None):
            raise PromptmillError(f"backbone: architecture {type(model).__name__}", "has no attention heads", "Choose another model.")
        heads: int = config.num_attention_heads
        self.hidden_size: int = config.hidden_size
        self.num_kv_heads: int = getattr(config, "num_key_value_heads", None) or heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // heads
        self.dtype: torch.dtype = self._embed.weight.dtype
        self.device: torch.device = self._embed.weight.device
        self.max_positions: int = getattr(config, "max_position_embeddings", None) or 1 << 30
        # RoBERTa and its kin count positions from padding_idx + 1, and mark that on the position table.
        tables = [m for name, m in self._base.named_modules() if name.endswith("position_embeddings") and isinstance(m, torch.nn.Embedding)]
        self._position_offset = tables[0].padding_idx + 1 if tables and tables[0].padding_idx is not None else 0
        self.logit_cap: float | None = getattr(config, "final_logit_softcapping", None)
        self.num_layers: int = config.num_hidden_layers
        probe(self._base, causal, self._position_offset)

    @property
    def head_weight(self) -> Tensor:
        """The output embedding matrix [V, H] of a causal model."""
        weight: Tensor = self._model.get_output_embeddings().weight
        return weight

    @property
    def vocabulary(self) -> Tensor:
        """The input embedding matrix [V, H]."""
        weight: Tensor = self._embed.weight
        return weight

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings. ids int64 [S] -> [S, H]."""
        embedded: Tensor = self._embed(ids)
        return embedded

    def hidden_states(self, embeddings: Tensor, position_ids: Tensor, prompt_pass: AttentionPass) -> Tensor:
        """Last hidden states of one packed row. embeddings [S, H], position_ids int64 [S] -> [S, H]."""
        output: Tensor = self._base(
            inputs_embeds=embeddings[None],
            position_ids=position_ids[None] + self._position_offset,
            use_cache=False,
            prompt_pass=prompt_pass,
        ).last_hidden_state
        return output[0]

    def pool(self, states: Tensor, lengths: Sequence[int]) -> Tensor:
        """One vector per text: the mean of its states, or the first where the encoder says so. [sum(lengths), H] -> [n, H]."""
        return torch.stack([text[0] if self._pool_first else text.mean(0) for text in torch.split(states, list(lengths))])

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits of a causal model. hidden [N, H] -> [N, V]."""
        logits: Tensor = self._model.get_output_embeddings()(hidden)
        return logits if self.logit_cap is None else torch.tanh(logits / self.logit_cap) * self.logit_cap


def load_backbone(spec: BackboneSpec, folder: Path | None = None) -> Backbone:
    """The frozen model of a task, loaded once per process.

    Args:
        spec: name, revision and dtype.
        folder: what a relative path starts from; default: the current folder.

    Raises:
        PromptmillError: it cannot be found or read, or its architecture fails the probe.
    """
    return _load(locate(spec, folder or Path()), spec.revision, spec.dtype)


@lru_cache(maxsize=2)
def _load(located: Located, revision: str | None, dtype_name: str) -> Backbone:
    where = f"backbone: {located.public_name}"
    hub: dict[str, Any] = {"revision": revision} if located.is_hub else {}
    with _quiet():
        try:
            config = AutoConfig.from_pretrained(located.source, **hub)
            causal = _is_causal(config, where)
            dtype = _dtype(dtype_name, causal)
            loader = AutoModelForCausalLM if causal else AutoModel
            model, found = loader.from_pretrained(
                located.source, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **hub
            )
            tokenizer = AutoTokenizer.from_pretrained(located.source, **hub)
        except PromptmillError:
            raise
        except Exception as error:  # transformers, safetensors and the hub client each raise their own kinds
            reason = " ".join(str(error).split())[:300]
            raise PromptmillError(where, f"cannot be loaded ({reason})", "Check the name, the revision and the files.") from None
    _refuse_missing(found["missing_keys"], where)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    files = Path(model.config._name_or_path if not located.is_hub else _snapshot(located.source, revision))
    identity = BackboneIdentity(
        name=located.public_name,
        revision=revision,
        architecture=type(model).__name__,
        dtype=str(dtype).removeprefix("torch."),
        weights=weights_digest(files, located.weights),
        tokenizer=tokenizer_digest(files),
    )
    with _quiet():
        return Backbone(model.to(device), tokenizer, causal, _pools_first(files), identity, located.origin)


def _refuse_missing(names: Iterable[str], where: str) -> None:
    """transformers draws absent weights at random and goes on. Only a pooler may be absent: `Backbone.pool` replaces it."""
    missing = sorted(name for name in names if "pooler" not in name)
    if missing:
        raise PromptmillError(where, f"its files lack {len(missing)} weights, the first is {missing[0]}", "Fetch or save the model again.")


def _pools_first(folder: Path) -> bool:
    """Whether a sentence encoder's own settings name its first token as the pooled state."""
    settings = folder / "1_Pooling" / "config.json"
    return settings.is_file() and bool(json.loads(settings.read_text(encoding="utf-8")).get("pooling_mode_cls_token"))


def _snapshot(hub_id: str, revision: str | None) -> str:
    from huggingface_hub import snapshot_download

    return snapshot_download(hub_id, revision=revision, local_files_only=True)


def _is_causal(config: Any, where: str) -> bool:
    if getattr(config, "is_encoder_decoder", False):
        raise PromptmillError(where, f"is an encoder-decoder ({config.model_type})", "Use a causal model or an encoder.")
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return False
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return True
    raise PromptmillError(where, f'model type "{config.model_type}" is neither a causal model nor an encoder', "Choose another model.")


def _dtype(name: str, causal: bool) -> torch.dtype:
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    fast = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if causal and fast else torch.float32


class _quiet:
    """Keeps transformers' load bars and advice off the terminal, where our own progress stands."""

    def __enter__(self) -> None:
        self._level = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers_logging.set_verbosity(self._level)
        transformers_logging.enable_progress_bar()
