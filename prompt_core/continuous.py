"""Continuous generation: texts behind many prompts are written side by side; finished ones leave, waiting ones enter.

The idea is that of Orca (Yu et al. 2022), iteration-level scheduling: what a step costs depends on the rows that are alive.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from prompt_core.backbone import Backbone, DecodePass, EncoderDecoder
from prompt_core.data.packing import pack
from prompt_core.prefix_stack import PrefixStack
from prompt_core.prompts import PromptState, Tree, encoder_states, hidden_states
from prompt_core.sampling import Sampling

_ROWS = 256
_CELLS = 64 * 1024  # rows times the longest of them, in tokens: what the caches hold at most
_PREFILL = 8192  # tokens of inputs in one pass
_COLUMNS = 64  # by which caches grow
OnProgress = Callable[[int, int], None]


@dataclass(eq=False)
class Text:
    """A text that is asked for, and what is written of it.

    Attributes:
        prompt: what stands in front; for a causal model lowered.
        input: token ids after the root, at least one.
        max_new_tokens: where it ends at the latest; less where the model has not so many positions.
        ends: runs of tokens, each of which ends it; not part of what is written.
        closing: tokens that end it too and are part of it, since they may hold its last characters.
        sampling, uniforms: how tokens are drawn, and the numbers that they are drawn with, float64 [max_new_tokens]; None for
            the most likely ones.
        ids: what is written so far.
        log_chance: sum of the log-probabilities of its tokens, those that ended it included, before any temperature.
        ended: whether the model ended it by itself.
        ending: how many tokens of an end stood behind it.
        cancelled: set from outside: nobody waits for it.
    """

    prompt: PromptState
    input: Sequence[int]
    max_new_tokens: int
    ends: Sequence[Sequence[int]]
    closing: frozenset[int] = frozenset()
    sampling: Sampling | None = None
    uniforms: Tensor | None = None
    ids: list[int] = field(default_factory=list)
    log_chance: float = 0.0
    ended: bool = False
    ending: int = 0
    cancelled: bool = False

    @property
    def mean_log_chance(self) -> float:
        """Mean log-probability of its tokens, those that ended it included."""
        return self.log_chance / max(1, len(self.ids) + self.ending)

    def add(self, token: int) -> None:
        """Write a token, or end with it."""
        self.ids.append(token)
        if token in self.closing:
            self.ended = True
            return
        for run in self.ends:
            if self.ids[-len(run) :] == list(run):
                self.ended, self.ending = True, len(run)
                del self.ids[-self.ending :]
                return

    def start_over(self) -> None:
        """Forget what is written of it."""
        self.ids.clear()
        self.log_chance, self.ended, self.ending = 0.0, False, 0

    @property
    def longest(self) -> int:
        """Tokens that it takes at most, its prompt aside."""
        return len(self.input) + self.max_new_tokens


class TextBatch(ABC):
    """Texts that are being written side by side.

    Attributes:
        texts: in the order of their rows.
    """

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self.texts: list[Text] = []
        self._last = torch.empty(0, backbone.hidden_size, dtype=backbone.dtype, device=backbone.device)

    @classmethod
    def of(cls, backbone: Backbone) -> TextBatch:
        """An empty one, for the kind of backbone."""
        return _DecoderTexts(backbone) if isinstance(backbone, EncoderDecoder) else _PackedTexts(backbone)

    @abstractmethod
    def admit(self, waiting: deque[Text]) -> None:
        """Take texts from the front of those that wait, as many as there is room for, and read their inputs."""

    @abstractmethod
    def _leave(self, going: list[int]) -> None:
        """Leave only these rows, ascending; reorders `texts`, `_last` and the caches alike."""

    @abstractmethod
    def _feed(self, tokens: Tensor) -> None:
        """Append a token to each row, int64 [B], for the next `_last`."""

    @torch.inference_mode()
    def step(self) -> list[Text]:
        """Write one token of each text; those that are finished leave and are returned."""
        tokens = self._chosen(self._backbone.logits(self._last))
        written = dict(zip(self.texts, tokens.tolist(), strict=True))
        going, finished = [], []
        for row, (text, token) in enumerate(written.items()):
            text.add(token)
            if text.ended or text.cancelled or len(text.ids) >= text.max_new_tokens:
                finished.append(text)
            else:
                going.append(row)
        if finished:
            self._leave(going)
        if self.texts:
            self._feed(torch.tensor([written[text] for text in self.texts], device=self._backbone.device))
        return finished

    def _chosen(self, logits: Tensor) -> Tensor:
        """The next token of each row, int64 [B]; notes its log-probability."""
        largest, tokens = logits.max(-1)
        for sampling in {text.sampling for text in self.texts if text.sampling}:
            rows = [row for row, text in enumerate(self.texts) if text.sampling is sampling]
            drawn_with = [text.uniforms[len(text.ids)] for text in (self.texts[row] for row in rows) if text.uniforms is not None]
            tokens[rows] = sampling.draw(logits[rows], torch.stack(drawn_with))
        taken = logits.gather(1, tokens[:, None])[:, 0].float()
        largest = largest.float()
        chances = taken - largest - logits.float().sub_(largest[:, None]).exp_().sum(-1).log()  # the logits are not needed any more
        for text, chance in zip(self.texts, chances.tolist(), strict=True):
            text.log_chance += chance
        return tokens


class _PackedTexts(TextBatch):
    """Behind many prompts of a causal model, each of whose keys and values are there once."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self._prefixes = PrefixStack(backbone)
        self._lengths = torch.empty(0, dtype=torch.int64, device=backbone.device)
        shape = (0, backbone.num_kv_heads, 0, backbone.head_dim)
        empty = torch.empty(shape, dtype=backbone.dtype, device=backbone.device)
        self._cache = [(empty, empty)] * backbone.num_layers  # rows behind the texts' are unused
        self._tiles = self._prefixes.tiles([])

    @torch.inference_mode()
    def admit(self, waiting: deque[Text]) -> None:
        longest = max((text.longest for text in self.texts), default=0)
        entering: list[Text] = []
        while waiting:
            text = waiting[0]
            left = self._backbone.max_positions - text.prompt.keys.shape[1] - len(text.input)
            text.max_new_tokens = min(text.max_new_tokens, left + 1)  # the last one is not read
            longest, rows = max(longest, text.longest), len(self.texts) + len(entering) + 1
            if rows > 1 and (rows > _ROWS or rows * longest > _CELLS):
                break
            entering.append(waiting.popleft())
        number = {prompt: i for i, prompt in enumerate(dict.fromkeys(text.prompt for text in entering))}
        entering.sort(key=lambda text: number[text.prompt])
        for part in pack(entering, lambda text: len(text.input), _PREFILL):
            self._read(part)
        if entering:
            self._tiles = self._prefixes.tiles([text.prompt for text in self.texts])

    def _read(self, texts: list[Text]) -> None:
        """Run the inputs as one packed row of a forest; texts of one prompt stand side by side."""
        device, first = self._backbone.device, len(self.texts)
        captured: list[tuple[Tensor, Tensor]] = []
        trees = []
        for prompt, group in groupby(texts, key=lambda text: text.prompt):
            inputs = [text.input for text in group]
            trees.append(Tree(prompt, inputs, rows=[end - 1 for end in accumulate(map(len, inputs))]))
        states = hidden_states(self._backbone, trees, captured)
        sizes = torch.tensor([len(text.input) for text in texts], device=device)
        row = torch.repeat_interleave(torch.arange(len(texts), device=device), sizes)
        column = torch.arange(len(row), device=device) - torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
        self._make_room(first + len(texts), int(sizes.max()) + 1)
        for layer, cached in zip(captured, self._cache, strict=True):
            for own, room in zip(layer, cached, strict=True):
                room[first + row, :, column] = own
        self._last = torch.cat([self._last, *states])
        self._lengths = torch.cat([self._lengths, sizes])
        self.texts += texts
        for text in texts:
            self._prefixes.take(text.prompt)

    def _leave(self, going: list[int]) -> None:
        staying = set(going)
        for row, text in enumerate(self.texts):
            if row not in staying:
                self._prefixes.release(text.prompt)
        # The last rows move into the gaps: nothing else of the caches is copied.
        order = list(range(len(going)))
        gaps = [row for row in order if row not in staying]
        for gap, moved in zip(gaps, [row for row in going if row >= len(going)], strict=True):
            order[gap] = moved
        if gaps:
            to, origin = torch.tensor([gaps, [order[gap] for gap in gaps]], device=self._backbone.device)
            for cached in self._cache:
                for room in cached:
                    room[to] = room[origin]
        kept = torch.tensor(order, dtype=torch.int64, device=self._backbone.device)
        self.texts = [self.texts[row] for row in order]
        self._last, self._lengths = self._last[kept], self._lengths[kept]
        self._tiles = self._prefixes.tiles([text.prompt for text in self.texts])

    def _feed(self, tokens: Tensor) -> None:
        rows, longest = len(self.texts), int(self._lengths.max()) + 1
        self._make_room(rows, longest)
        used = [(keys[:rows, :, :longest], values[:rows, :, :longest]) for keys, values in self._cache]
        step = DecodePass(used, self._lengths, self._prefixes.keys, self._prefixes.values, self._tiles)
        self._last = self._backbone.hidden_states(self._backbone.embed(tokens), step.positions, step)
        self._lengths = self._lengths + 1

    def _make_room(self, rows: int, columns: int) -> None:
        had_rows, heads, had_columns, dim = self._cache[0][0].shape
        if rows <= had_rows and columns <= had_columns:
            return
        if rows > had_rows:  # twice as many, so that texts that come one by one do not copy everything each time
            rows = rows if not had_rows else min(max(rows, 2 * had_rows), max(rows, _ROWS))
        columns = _COLUMNS * math.ceil(max(columns, had_columns) / _COLUMNS)
        rows, used = max(rows, had_rows), len(self.texts)

        def moved(old: Tensor) -> Tensor:
            new = old.new_zeros(rows, heads, columns, dim)
            new[:used, :, :had_columns] = old[:used]
            return new

        for layer, (keys, values) in enumerate(self._cache):  # one layer at a time: the old and the new of one are there at once
            self._cache[layer] = (moved(keys), moved(values))


class _DecoderTexts(TextBatch):
    """What a decoder writes of inputs that its encoder read; they enter together, behind one prompt, when the last ones have left."""

    @torch.inference_mode()
    def admit(self, waiting: deque[Text]) -> None:
        backbone = self._backbone
        assert isinstance(backbone, EncoderDecoder)
        if self.texts or not waiting:
            return
        prompt = waiting[0].prompt
        while waiting and waiting[0].prompt is prompt and len(self.texts) < _ROWS:
            self.texts.append(waiting.popleft())
        for text in self.texts:  # of a decoder that counts from 0
            text.max_new_tokens = min(text.max_new_tokens, backbone.max_positions)
        self._states, self._mask = encoder_states(backbone, prompt, [text.input for text in self.texts])
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self._feed(torch.full((len(self.texts),), backbone.decoder_start, device=backbone.device))

    def _leave(self, going: list[int]) -> None:
        kept = torch.tensor(going, dtype=torch.int64, device=self._backbone.device)
        self.texts = [self.texts[row] for row in going]
        self._last, self._states, self._mask = self._last[kept], self._states[kept], self._mask[kept]
        self._cache.batch_select_indices(kept)

    def _feed(self, tokens: Tensor) -> None:
        assert isinstance(self._backbone, EncoderDecoder)
        self._last = self._backbone.decode(tokens[:, None], self._states, self._mask, self._cache)[:, 0]


def write(backbone: Backbone, texts: Iterable[Text], on_progress: OnProgress | None = None) -> None:
    """Write texts to their end; the shortest inputs first, whose rows are of like length and waste little cache.

    New texts enter when a quarter of the rows is free: reading a few is as slow as reading many.
    """
    batch = TextBatch.of(backbone)
    waiting = deque(sorted(texts, key=lambda text: len(text.input)))
    if isinstance(backbone, EncoderDecoder):
        number = {prompt: i for i, prompt in enumerate(dict.fromkeys(text.prompt for text in waiting))}
        waiting = deque(sorted(waiting, key=lambda text: number[text.prompt]))
    done, total = 0, len(waiting)
    while waiting or batch.texts:
        if len(batch.texts) <= _ROWS * 3 // 4:
            batch.admit(waiting)
        finished = len(batch.step())
        done += finished
        if on_progress and finished:
            on_progress(done, total)
