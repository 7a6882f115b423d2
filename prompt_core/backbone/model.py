"""The backbone: packed rows in, hidden states and logits out, all weights frozen."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from prompt_core.backbone.attention import NAME, AttentionPass
from prompt_core.backbone.fuse import fuse_layers
from prompt_core.backbone.probe import PromptShape, alone, probe, probe_ids, refused
from prompt_core.backbone.product import Product, packs
from prompt_core.backbone.recompute import recomputed_layers
from prompt_core.manifest import BackboneIdentity


class Backbone:
    """A frozen transformers model whose attention is the packed attention step.

    Args:
        model: with the attention that it was trained with (`attn_implementation="eager"`), in evaluation mode.
        tokenizer: its own.
        causal: whether it is a causal language model; else it is a bidirectional encoder.
        pool_first: whether an encoder's vector of a text is its first state.
        identity: name, architecture, dtype and content digests.
        origin: path of a local backbone, else None.

    Attributes:
        identity, origin, tokenizer, causal: as given.
        num_layers, num_kv_heads, head_dim: the shape of a deep prefix for it; a soft prompt is as wide as `vocabulary`.
        hidden_size: width of the hidden states.
        max_positions: tokens of the longest path that it was made for.
        dtype: of embeddings and hidden states.
        device: where rows go in and states come out, wherever the layers lie.
        logit_cap: logits become cap * tanh(logit / cap); None for no cap.

    Raises:
        PromptmillError: the architecture fails the probe.
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
        self._model = model.requires_grad_(False)
        self._base = self._part_for_prompts(model, causal)
        self._embed = model.get_input_embeddings()
        config = self._base.config
        self.dtype: torch.dtype = self._embed.weight.dtype
        self.device = _device_of(self._embed)
        self._position_offset = _position_offset(self._base)
        self.max_positions = _max_positions(config) - self._position_offset
        self.logit_cap: float | None = getattr(config, "final_logit_softcapping", None)
        shape = self._attach()
        self.num_layers, self.num_kv_heads, self.head_dim = shape.num_layers, shape.num_kv_heads, shape.head_dim
        self.hidden_size = shape.hidden_size

    @property
    def generates(self) -> bool:
        """Whether it writes text."""
        return self.causal

    @property
    def vocabulary(self) -> Tensor:
        """The input embeddings of all tokens, as `embed` gives them: [V, H], the model's own tensor where it is that."""
        weight: Tensor = self._embed.weight
        if type(self._embed) is torch.nn.Embedding and not weight.is_meta:
            return weight
        return self.embed(torch.arange(len(weight), device=self.device))

    @property
    def embedding_scale(self) -> float:
        """What the model's embedding table is multiplied with to give the rows of `embed`: in Gemma and BioGPT the square root of
        their width, else 1."""
        # Gemma has it as a number, and as a tensor in its weights' precision under the name that others have the number.
        return float(getattr(self._embed, "scalar_embed_scale", getattr(self._embed, "embed_scale", 1.0)))

    @property
    def embedding_name(self) -> str:
        """The embedding table's name among the model's weights."""
        names: dict[int, str] = {id(weight): name for name, weight in self._model.named_parameters()}
        return names[id(self._embed.weight)]

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings, scaled where the model scales them. ids int64 [S] -> [S, H]."""
        embedded: Tensor = self._embed(ids)
        return embedded

    def hidden_states(self, embeddings: Tensor, position_ids: Tensor, prompt_pass: AttentionPass, compiled: bool = False) -> Tensor:
        """Last hidden states of one packed row. embeddings [S, H], position_ids int64 [S], counted from 0 -> [S, H].

        If the pass asks for certain `rows`, these alone are given, [n, H]. `compiled` pays where rows come in one size, for
        torch.compile then takes the model once.
        """
        base = self._compiled if compiled else self._base
        with self._as_current_device():
            output: Tensor = base(
                inputs_embeds=embeddings[None],
                position_ids=position_ids[None] + self._position_offset,
                use_cache=False,
                prompt_pass=prompt_pass,
            ).last_hidden_state
        states, rows = output[0], prompt_pass.rows
        # A last layer that is fused leaves the others out by itself.
        return states if rows is None or len(states) == len(rows) else states[rows]

    @cached_property
    def _compiled(self) -> Any:
        return torch.compile(self._base, dynamic=False)

    def recomputing(self) -> AbstractContextManager[None]:
        """Within it a backward pass computes each layer again: about a third more time, a fraction of the memory."""
        return recomputed_layers(self._base, self.num_layers)

    def pool(self, states: Tensor, lengths: Sequence[int]) -> Tensor:
        """One vector per text: the mean of its states, or the first where the encoder says so. [sum(lengths), H] -> [n, H]."""
        return torch.stack([text[0] if self._pool_first else text.mean(0) for text in torch.split(states, list(lengths))])

    @cached_property
    def head_weight(self) -> Tensor:
        """The output embeddings of a model that generates [V, H], on `device`; its own tensor, but for models that scale their logits."""
        head = self._model.get_output_embeddings()
        if getattr(head, "bias", None) is not None:
            raise refused(self._base, "adds a bias to its logits")
        with align_module_device(head):  # fetches what accelerate has put away
            weight: Tensor = head.weight.detach().to(self.device)
        scale = self._logit_scale()
        return weight if scale == 1 else weight * scale

    @cached_property
    def head(self) -> Product:
        """The product with `head_weight`: hidden [N, H] -> logits before the cap, [N, V]."""
        return Product(self.head_weight, None, packs([self.head_weight]))

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token logits of a model that generates. hidden [N, H] -> [N, V]."""
        logits = self.head(hidden)
        return logits if self.logit_cap is None else torch.tanh(logits / self.logit_cap) * self.logit_cap

    @staticmethod
    def _part_for_prompts(model: PreTrainedModel, causal: bool) -> PreTrainedModel:
        """The part that sees prompts. Of a model that also reads images, the decoder is the part for texts."""
        part: PreTrainedModel = model.get_decoder() if causal else model.base_model
        return part if isinstance(part, PreTrainedModel) else model.base_model  # ModernBERT's decoder is its head

    def _attach(self) -> PromptShape:
        """Put the attention step in place and prove that the model is still itself."""
        ids = probe_ids(len(self._embed.weight), self.tokenizer.all_special_ids).to(self.device)
        expected = alone(self._model, ids, self.causal, self.identity.dtype)
        self._model.set_attn_implementation(NAME)
        fuse_layers(self._base, self._position_offset)
        return probe(self, self._base, ids, expected)

    def _logit_scale(self) -> float:
        config = self._base.config  # Cohere multiplies the logits by its scale, Granite divides by its own
        return getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)

    def _as_current_device(self) -> AbstractContextManager[Any]:
        """Triton launches on the current GPU, which need not be the one that the tensors are on."""
        return torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()


def _device_of(embedding: torch.nn.Module) -> torch.device:
    """Where it computes; accelerate's hook says it where the weights themselves are put away."""
    computing = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    weight: Tensor = embedding.get_parameter("weight")
    return weight.device if computing is None else torch.device(computing)


def _position_offset(base: PreTrainedModel) -> int:
    """RoBERTa and its kin count positions from padding_idx + 1, and mark that on the position table."""
    tables = [m for name, m in base.named_modules() if name.endswith("position_embeddings") and isinstance(m, torch.nn.Embedding)]
    return tables[0].padding_idx + 1 if tables and tables[0].padding_idx is not None else 0


def _max_positions(config: PretrainedConfig) -> int:
    """Positions that a model has. One with LongRoPE turns every token by other angles once a row exceeds its first range:
    the row's longest example would decide for all others, so that this range is what a packed row has."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return int(rope["original_max_position_embeddings"])
    return getattr(config, "max_position_embeddings", None) or 1 << 30
