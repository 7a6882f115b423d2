"""Reparameterised prompts: a small network produces the prompt while it is tuned, and is folded away when it is kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from prompt_core.prompts.deep import DeepPrefix
from prompt_core.prompts.prompt import Prompt, PromptState
from prompt_core.prompts.soft import SoftPrompt

Network = Literal["mlp", "lstm"]


class Reparameterised(Prompt):
    """A prompt's start plus what a network makes of trainable inner embeddings, one per token.

    P-tuning (Liu et al. 2021, arXiv:2103.10385) for a soft prompt, with an MLP or an LSTM and an MLP; prefix tuning's
    MLP (Li & Liang 2021, arXiv:2101.00190) for a deep one. The last layer starts at zero, so that tuning starts exactly
    where the prompt does (Razdaibiedina et al. 2023, arXiv:2305.03937, add the network to the prompt in the same way).

    Args:
        prompt: the start; its own parameters stay as they are, but for the soft tokens inside the examples of a deep one, which no
            network makes.
        kind: `lstm` is for soft prompts.
        hidden: width of the network.
        generator: draws the network's weights and the inner embeddings, on the CPU.
        inner: where the inner embeddings start, [tokens, any width]; default: at random, as wide as the network.
    """

    def __init__(
        self, prompt: SoftPrompt | DeepPrefix, kind: Network, hidden: int, generator: torch.Generator, inner: Tensor | None = None
    ) -> None:
        super().__init__()
        self._prompt = prompt.requires_grad_(False)
        if isinstance(prompt, DeepPrefix) and prompt.embeddings is not None:
            prompt.embeddings.requires_grad_(True)
        state = prompt.state()
        soft = isinstance(prompt, SoftPrompt)
        tokens = len(state.rows) if soft else state.keys.shape[1]
        outputs = state.rows.shape[1] if soft else 2 * state.keys[:, 0].numel()
        inner = torch.randn(tokens, hidden, generator=generator) if inner is None else inner
        self.inner = nn.Parameter(inner.detach().float().to(state.rows.device).clone())
        self.network = (soft_network if soft else deep_network)(kind, self.inner.shape[1], hidden, outputs)
        with torch.no_grad():
            for weight in self.network.parameters():
                bound = hidden**-0.5
                weight.copy_(torch.rand(weight.shape, generator=generator) * 2 * bound - bound)
            for weight in self.network[-1].parameters():
                weight.zero_()
        self.network.to(self.inner.device)

    def state(self) -> PromptState:
        start = self._prompt.state()
        moved: Tensor = self.network(self.inner)
        if isinstance(self._prompt, SoftPrompt):
            return replace(start, rows=start.rows + moved)
        layers, tokens, heads, dim = start.keys.shape
        frozen = self._prompt.frozen_tokens
        moved = torch.cat([torch.zeros_like(moved[:frozen]), moved[frozen:]])
        keys, values = moved.view(tokens, layers, 2, heads, dim).permute(2, 1, 0, 3, 4)
        return replace(start, keys=start.keys + keys, values=start.values + values)


def soft_network(kind: Network, inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """P-tuning's prompt encoder: [R, inputs] -> [R, outputs]."""
    if kind == "mlp":
        return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
    return nn.Sequential(_Lstm(inputs, hidden), nn.Linear(2 * hidden, 2 * hidden), nn.ReLU(), nn.Linear(2 * hidden, outputs))


def deep_network(kind: Network, inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Prefix tuning's projection: [P, inputs] -> [P, layers * (key, value) * heads * dim]."""
    if kind != "mlp":
        raise ValueError(f"reparameterisation is {kind!r}: a deep prefix takes 'mlp'")
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs))


class _Lstm(nn.Module):
    """A bidirectional LSTM of two layers over the prompt's tokens: [R, inputs] -> [R, 2 * hidden]."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, num_layers=2, bidirectional=True)

    def forward(self, rows: Tensor) -> Tensor:
        states: Tensor = self.lstm(rows)[0]
        return states
