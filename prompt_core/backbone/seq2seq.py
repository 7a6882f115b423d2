"""Encoder-decoders (T5, BART): a prompt stands in front of the encoder's input, in padded rows instead of a packed one.

Nothing of an input's encoding can be shared: a bidirectional encoder changes even the prompt's own states with every
input. So each example carries its prompt, and attention is the dense one of the textbook: exact, but slower and larger
than a packed row by what the prompt repeats.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface, EncoderDecoderCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.masking_utils import eager_mask

from prompt_core.backbone.attention import layer_of, number_layer
from prompt_core.backbone.model import Backbone
from prompt_core.backbone.probe import RAISED, PromptShape, brief, differences, probe_ids, refused
from prompt_core.backbone.recompute import recomputed_layers
from prompt_core.manifest import BackboneIdentity

_NAME = "promptmill_padded"
# Of the probe's ids: the inputs of two examples of different length, and what the decoder reads behind each.
_SOURCES, _TARGETS = (slice(0, 5), slice(5, 8)), (slice(8, 9), slice(9, 12))
# As for packed rows, but for float32: both sides do the same dense products.
_LARGEST_DIFFERENCE = {"float32": 1e-4, "bfloat16": 0.5, "float16": 0.5}


@dataclass
class PaddedPass:
    """Deep prefixes in front of padded rows of an encoder: never masked, without a position or a position bias.

    Attributes:
        keys, values: of several prompts, each [L, T, P, H, D], padded to the longest prefix.
        lengths: tokens of each prompt's prefix, int64 [T].
        owners: which prompt each row stands behind, int64 [B].
        mask: which of the rows' own tokens are real, bool [B, S].
        captured: given a list, every layer appends the (k, v) of all real tokens, row after row, each [tokens, H, D].
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor
    owners: Tensor
    mask: Tensor
    captured: list[tuple[Tensor, Tensor]] | None = None

    def prefix(self, module: torch.nn.Module, own_keys: Tensor, own_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values in front of each row, [B, H, P, D], and what to add to their scores, [B, 1, 1, P].

        Args:
            module: the attention module that asks.
            own_keys, own_values: of the rows' own tokens, each [B, H, S, D].
        """
        if self.captured is not None:
            self.captured.append((own_keys.transpose(1, 2)[self.mask], own_values.transpose(1, 2)[self.mask]))
        layer, device = layer_of(module), own_keys.device
        # F.embedding rather than indexing: its gradient sums repeated rows in a fixed order on a GPU too.
        keys, values = (
            F.embedding(self.owners, states[layer].flatten(1)).view(len(self.owners), *states.shape[2:]).transpose(1, 2).to(device)
            for states in (self.keys, self.values)
        )
        absent = torch.arange(keys.shape[2], device=self.lengths.device) >= self.lengths[self.owners][:, None]
        return keys, values, torch.zeros_like(absent, dtype=torch.float32).masked_fill(absent, -torch.inf)[:, None, None].to(device)


@dataclass
class _NumberingPass(PaddedPass):
    """A pass without prefixes that numbers the attention modules in the order in which they call."""

    seen: list[torch.nn.Module] = field(default_factory=list)
    shapes: list[tuple[int, int]] = field(default_factory=list)

    def prefix(self, module: torch.nn.Module, own_keys: Tensor, own_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        number_layer(module, len(self.seen))
        self.seen.append(module)
        self.shapes += [(states.shape[1], states.shape[3]) for states in (own_keys, own_values)]
        return own_keys[:, :, :0], own_values[:, :, :0], own_keys.new_zeros(len(own_keys), 1, 1, 0)


class EncoderDecoder(Backbone):
    """A frozen encoder-decoder: `encode` rows behind prompts, then `decode` what is written of each.

    Of what it has from `Backbone`, packed rows and pooling are not for it.

    Args:
        model, tokenizer, identity, origin: as of `Backbone`.

    Attributes:
        num_layers: of the encoder, where prompts are; so are the other sizes.
        decoder_start: the token that a decoder's row starts with.

    Raises:
        PromptmillError: it gives other results here than by itself.
    """

    decoder_start: int

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, identity: BackboneIdentity, origin: str | None) -> None:
        super().__init__(model, tokenizer, causal=False, pool_first=False, identity=identity, origin=origin)

    @property
    def generates(self) -> bool:
        return True

    def encode(self, embeddings: Tensor, prompt_pass: PaddedPass) -> Tensor:
        """Last hidden states of padded rows, [B, S, H]; what stands in padding means nothing.

        Args:
            embeddings: [B, S, H], counted from position 0, padded behind.
            prompt_pass: says what is real and what stands in front.
        """
        mask = prompt_pass.mask.long()
        states: Tensor = self._base(inputs_embeds=embeddings, attention_mask=mask, prompt_pass=prompt_pass).last_hidden_state
        return states.to(self.device)

    def decode(self, ids: Tensor, states: Tensor, mask: Tensor, cache: EncoderDecoderCache | None = None) -> Tensor:
        """Last hidden states of the decoder, [B, T, H].

        Args:
            ids: what it reads, int64 [B, T], padded behind: a token sees those before it. With a cache, what comes next.
            states: of `encode`, [B, S, H].
            mask: which of them are real, bool [B, S].
            cache: written in place.
        """
        output: Tensor = self._model.get_decoder()(
            input_ids=ids,
            encoder_hidden_states=states,
            encoder_attention_mask=mask.long(),
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        return output.to(self.device)

    def recomputing(self) -> AbstractContextManager[Any]:
        stack = ExitStack()
        for half in (self._base, self._model.get_decoder()):
            layers = next(module for module in half.modules() if isinstance(module, torch.nn.ModuleList))
            stack.enter_context(recomputed_layers(half, len(layers)))  # what a configuration says is the encoder's number
        return stack

    @staticmethod
    def _part_for_prompts(model: PreTrainedModel, causal: bool) -> PreTrainedModel:
        encoder: PreTrainedModel = model.get_encoder()
        return encoder

    def _logit_scale(self) -> float:
        config = self._model.config  # the first T5, whose head is its embeddings
        return float(config.d_model**-0.5) if getattr(config, "scale_decoder_outputs", False) else 1.0

    @torch.no_grad()
    def _attach(self) -> PromptShape:
        model = self._model
        start = model.config.decoder_start_token_id
        start = model.generation_config.decoder_start_token_id if start is None else start
        if start is None:
            raise refused(model, "does not say which token its decoder starts with")
        bias = getattr(model, "final_logits_bias", None)
        if bias is not None and bool(bias.any()):
            raise refused(model, "adds a bias to its logits")
        self.decoder_start = start
        ids = probe_ids(len(self._embed.weight), self.tokenizer.all_special_ids).to(self.device)
        first = ids.new_tensor([start])
        sources, targets = [ids[part] for part in _SOURCES], [torch.cat([first, ids[part]]) for part in _TARGETS]
        try:
            expected = [
                model(input_ids=source[None], decoder_input_ids=target[None], use_cache=False).logits[0]
                for source, target in zip(sources, targets, strict=True)
            ]
            model.set_attn_implementation(_NAME)
            mask = torch.arange(len(sources[0]), device=self.device) < torch.tensor([[len(s)] for s in sources], device=self.device)
            none = torch.empty(0, device=self.device)
            numbering = _NumberingPass(none, none, none, none, mask)
            states = self.encode(pad_sequence([self.embed(source) for source in sources], batch_first=True), numbering)
            decoded = self.decode(pad_sequence(targets, batch_first=True), states, mask)
        except RAISED as error:
            raise refused(model, f"does not take the attention step ({brief(error)})") from None
        layers, calls = self._base.config.num_hidden_layers, numbering.seen
        if not len(set(calls)) == len(calls) == layers:
            raise refused(model, f"called the attention step {len(calls)} times in {layers} layers of its encoder")
        if len(set(numbering.shapes)) > 1:
            raise refused(model, f"has layers of different shapes ({', '.join(map(str, sorted(set(numbering.shapes))))})")
        found = torch.cat([self.logits(row[: len(target)]) for row, target in zip(decoded, targets, strict=True)])
        difference = float(differences(found, torch.cat(expected)).mean())
        if difference > _LARGEST_DIFFERENCE.get(self.identity.dtype, 1.0):
            raise refused(model, f"gives other results in padded rows than alone (they differ by {difference:.0%})")
        return PromptShape(layers, *numbering.shapes[0], states.shape[-1])


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    prompt_pass: PaddedPass | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls; without a pass in the decoder. query [B, H, S, D], key and value [B, H, K, D]."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query @ key.transpose(-1, -2)).float() * scale
    for bias in (position_bias, attention_mask):
        scores = scores if bias is None else scores + bias
    if prompt_pass is not None:
        ahead, ahead_values, absent = prompt_pass.prefix(module, key, value)
        scores = torch.cat([(query @ ahead.transpose(-1, -2)).float() * scale + absent, scores], -1)
        value = torch.cat([ahead_values, value], 2)
    return (scores.softmax(-1).to(value.dtype) @ value).transpose(1, 2), None


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, eager_mask)
