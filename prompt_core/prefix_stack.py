"""The keys and values of the prompts that texts are being written behind, stacked so that one step reads them all."""

from __future__ import annotations

import torch
from prefix_attention import PrefixTiles
from torch import Tensor

from prompt_core.backbone import Backbone
from prompt_core.prompts import PromptState

_KEPT = 32  # prompts that stay although no text needs them now: their next text would copy them again


class PrefixStack:
    """Lowered prompts in numbered places.

    Attributes:
        keys, values: each [L, G, Hkv, P, D] in the backbone's dtype, a prompt in the first slots of its place.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._device = backbone.device
        shape = (backbone.num_layers, 0, backbone.num_kv_heads, 0, backbone.head_dim)
        self.keys = torch.empty(shape, dtype=backbone.dtype, device=backbone.device)
        self.values = torch.empty_like(self.keys)
        self._places: dict[PromptState, int] = {}  # in the order of their last use
        self._users: dict[PromptState, int] = {}

    def take(self, prompt: PromptState) -> None:
        """Put a prompt in a place, if it has none, for one more text."""
        if prompt in self._places:
            self._places[prompt] = self._places.pop(prompt)
        else:
            self._put(prompt)
        self._users[prompt] = self._users.get(prompt, 0) + 1

    def release(self, prompt: PromptState) -> None:
        """A text behind the prompt is finished."""
        self._users[prompt] -= 1

    def tiles(self, prompts: list[PromptState]) -> PrefixTiles:
        """The plan of a step whose rows stand behind these prompts."""
        lengths = [0] * self.keys.shape[1]
        for prompt, place in self._places.items():
            lengths[place] = prompt.keys.shape[1]
        return PrefixTiles.of([self._places[prompt] for prompt in prompts], lengths, self._device)

    def _put(self, prompt: PromptState) -> None:
        unused = [other for other in self._places if not self._users.get(other)]
        if len(self._places) >= _KEPT and unused:
            place = self._places.pop(unused[0])
            self._users.pop(unused[0], None)
        else:
            place = len(self._places)
        tokens = prompt.keys.shape[1]
        self._make_room(place + 1, tokens)
        for stack, states in ((self.keys, prompt.keys), (self.values, prompt.values)):
            stack[:, place, :, :tokens] = states.transpose(1, 2).to(stack.dtype)
        self._places[prompt] = place

    def _make_room(self, places: int, tokens: int) -> None:
        layers, had_places, heads, had_tokens, dim = self.keys.shape
        if places <= had_places and tokens <= had_tokens:
            return
        # The first one gets what it needs; when more come, twice as many are provided for.
        grown = max(had_places, places if not had_places else 2 * places if places > had_places else places)
        for name in ("keys", "values"):
            old: Tensor = getattr(self, name)
            new = old.new_zeros(layers, grown, heads, max(tokens, had_tokens), dim)
            new[:, :had_places, :, :had_tokens] = old
            setattr(self, name, new)
