"""A tuning step of one size: compiled once, on a GPU captured once as a CUDA graph, then fed with batch after batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from prefix_attention import StandingForest
from torch import Tensor

from prompt_core.backbone import Backbone, ForestPass
from prompt_core.encoded import Encoded
from prompt_core.prompts import SoftPrompt
from prompt_core.tuning.likelihood import next_token_losses

_WARM_UP = 3  # passes before a capture: they compile, plan and allocate


class StandingStep:
    """Loss and gradients of soft prompts that generate, over rows that are filled up to one size.

    What `hidden_states` and `Generation` compute for a batch of any size, at the price of the padding: rows that see
    themselves alone, and targets that weigh nothing.

    Args:
        backbone: a causal model.
        prompts: at least one; each is the whole root of its examples, its parameters stay the same tensors.
        tokens: rows of a pass, the prompts' among them.
        examples: of all prompts together, at most.
        targets: target tokens of all prompts together, at most.
        compiled: whether torch.compile takes the model.
    """

    def __init__(
        self, backbone: Backbone, prompts: Sequence[SoftPrompt], tokens: int, examples: int, targets: int, compiled: bool = True
    ) -> None:
        device = backbone.device
        self._backbone, self._compile = backbone, compiled
        self._parameters: list[Tensor] = [prompt.embeddings for prompt in prompts]
        self._forest = StandingForest.of(tokens, len(prompts) + examples + 1, device)
        self._pass = ForestPass(self._forest)
        self._ids = torch.zeros(tokens, dtype=torch.int64, device=device)
        self._places = torch.zeros(sum(map(len, self._parameters)), dtype=torch.int64, device=device)
        self._rows, self._targets, self._owners = torch.zeros(3, targets, dtype=torch.int64, device=device).unbind()
        self._weights = torch.zeros(targets, device=device)
        self._losses = torch.zeros(len(prompts), device=device)
        self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batches: Sequence[Sequence[Encoded]]) -> Tensor:
        """Take one batch per prompt, at least one example each.

        Returns:
            Each prompt's mean loss per target token, float32 [prompts], overwritten by the next call. The gradients of
            their sum are then the parameters' `grad`, also in the same memory every time.

        Raises:
            ValueError: the batches exceed the size of the step.
        """
        self._load(batches)
        if self._backbone.device.type != "cuda":
            self._compute()
        else:
            if self._graph is None:
                self._graph = self._captured()
            self._graph.replay()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient  # an optimizer may have dropped it
        return self._losses

    def _load(self, batches: Sequence[Sequence[Encoded]]) -> None:
        lengths: list[int] = []
        parents: list[int] = []
        ids: list[int] = []
        places: list[int] = []
        rows: list[int] = []
        for parameter, batch in zip(self._parameters, batches, strict=True):
            places += range(len(ids), len(ids) + len(parameter))
            ids += [0] * len(parameter)
            parents += [-1, *[len(lengths)] * len(batch)]
            lengths += [len(parameter), *(len(e.input) + len(e.target) - 1 for e in batch)]
            for example in batch:
                ids += example.input + example.target[:-1]
                rows += range(len(ids) - len(example.target), len(ids))
        targets = [[token for example in batch for token in example.target] for batch in batches]
        if len(rows) > len(self._rows):
            raise ValueError(f"the batches have {len(rows)} target tokens: this step has room for {len(self._rows)}")
        self._forest.load(lengths, parents)
        owners = [number for number, own in enumerate(targets) for _ in own]
        for into, values in (
            (self._ids, ids),
            (self._places, places),
            (self._rows, rows),
            (self._targets, list(chain(*targets))),
            (self._owners, owners),
            (self._weights, [1 / len(targets[number]) for number in owners]),
        ):
            filled = torch.tensor(values + [0] * (len(into) - len(values)), dtype=into.dtype)
            into.copy_(filled.pin_memory() if into.is_cuda else filled, non_blocking=True)

    def _compute(self) -> None:
        """The step on what is loaded; nothing in it depends on more of the batch than the contents of tensors."""
        soft = torch.cat(self._parameters).to(self._backbone.dtype)
        embeddings = self._backbone.embed(self._ids).index_copy(0, self._places, soft)
        states = self._backbone.hidden_states(embeddings, self._forest.position_ids, self._pass, compiled=self._compile)
        losses = next_token_losses(self._backbone, states.index_select(0, self._rows), None, self._targets) * self._weights
        for kept, gradient in zip(self._gradients, torch.autograd.grad(losses.sum(), self._parameters), strict=True):
            kept.copy_(gradient)
        self._losses.zero_().index_add_(0, self._owners, losses.detach())

    def _captured(self) -> torch.cuda.CUDAGraph:
        beside = torch.cuda.Stream(self._backbone.device)  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream(self._backbone.device))
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UP):
                self._compute()
        torch.cuda.current_stream(self._backbone.device).wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._compute()
        return graph
