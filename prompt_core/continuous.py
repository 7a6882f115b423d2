"""Continuous generation: texts behind many prompts are written side by side; finished ones leave, waiting ones enter.

The idea is that of Orca (Yu et al. 2022), iteration-level scheduling: what a step costs depends on the rows that are alive.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, groupby
from operator import itemgetter

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from prompt_core.backbone import Backbone, DecodePass, EncoderDecoder
from prompt_core.data.packing import pack
from prompt_core.prefix_stack import PrefixStack
from prompt_core.prompts import Tree, encoder_states, hidden_states
from prompt_core.writing import Likely, Step, Text

_ROWS = 256
_CELLS = 64 * 1024  # rows times the longest of them, in tokens: what the caches hold at most
_PREFILL = 8192  # tokens of inputs in one pass
_COLUMNS = 64  # by which caches grow
OnProgress = Callable[[int, int], None]


class TextBatch(ABC):
    """Texts that are being written side by side, each on a row, or on one row per open beginning of a beam search."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._rows: dict[Text, list[int]] = {}  # of each text, in its own order
        self._last = torch.empty(0, backbone.hidden_size, dtype=backbone.dtype, device=backbone.device)

    @classmethod
    def of(cls, backbone: Backbone) -> TextBatch:
        """An empty one, for the kind of backbone."""
        return _DecoderTexts(backbone) if isinstance(backbone, EncoderDecoder) else _PackedTexts(backbone)

    @property
    def texts(self) -> list[Text]:
        """Those that are being written."""
        return list(self._rows)

    @property
    def rows(self) -> int:
        """Rows that they take at most."""
        return sum(text.beams for text in self._rows)

    @property
    def _text_of_row(self) -> list[Text]:
        by_row = {row: text for text, rows in self._rows.items() for row in rows}
        return [by_row[row] for row in range(len(by_row))]

    @abstractmethod
    def admit(self, waiting: deque[Text]) -> None:
        """Take texts from the front of those that wait, as many as there is room for, and read their inputs."""

    @abstractmethod
    def _move(self, origins: list[int], left: Sequence[Text]) -> None:
        """Row i becomes what row origins[i] was, in `_last` and the caches alike; other rows are no more, nor are the texts that left."""

    @abstractmethod
    def _feed(self, tokens: Tensor) -> None:
        """Append a token to each row, int64 [B], for the next `_last`."""

    @torch.inference_mode()
    def step(self) -> list[Text]:
        """Write one token of each text; those that are finished leave and are returned."""
        likely = self._likely(self._backbone.logits(self._last))
        going: list[tuple[Text, Step]] = []
        finished = []
        for text, rows in self._rows.items():
            steps = text.go_on([likely[row] for row in rows])
            going += [(text, Step(rows[step.row], step.token)) for step in steps]
            if not steps:
                finished.append(text)
        order = _in_place([step.row for _, step in going])
        self._rows = {}
        for row, number in sorted(enumerate(order), key=itemgetter(1)):
            self._rows.setdefault(going[number][0], []).append(row)
        origins = [going[number][1].row for number in order]
        if origins != list(range(len(likely))):
            self._move(origins, finished)
        if going:
            self._feed(torch.tensor([going[number][1].token for number in order], device=self._backbone.device))
        return finished

    def _likely(self, logits: Tensor) -> list[Likely]:
        """Of each row the tokens that may come next: one, or as many as a beam search asks for."""
        texts = self._text_of_row
        largest, tokens = logits.max(-1)
        for sampling in {text.sampling for text in texts if text.sampling}:
            rows = [row for row, text in enumerate(texts) if text.sampling is sampling]
            drawn_with = [text.uniforms[len(text.ids)] for text in (texts[row] for row in rows) if text.uniforms is not None]
            tokens[rows] = sampling.draw(logits[rows], torch.stack(drawn_with))
        searched = [row for row, text in enumerate(texts) if text.beams > 1]
        most = min(max(text.choice for text in texts), logits.shape[-1])
        best = logits[searched].float().log_softmax(-1).topk(most)
        taken = logits.gather(1, tokens[:, None])[:, 0].float()
        largest = largest.float()
        chances = taken - largest - logits.float().sub_(largest[:, None]).exp_().sum(-1).log()  # the logits are not needed any more
        likely = [Likely([token], [chance]) for token, chance in zip(tokens.tolist(), chances.tolist(), strict=True)]
        for row, *several in zip(searched, best.indices.tolist(), best.values.tolist(), strict=True):
            likely[row] = Likely(*several)
        return likely


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
        longest, rows = max((text.longest for text in self._rows), default=0), self.rows
        entering: list[Text] = []
        while waiting:
            text = waiting[0]
            left = self._backbone.max_positions - text.prompt.keys.shape[1] - len(text.input)
            text.max_new_tokens = min(text.max_new_tokens, left + 1)  # the last one is not read
            longest, rows = max(longest, text.longest), rows + text.beams
            if (self._rows or entering) and (rows > _ROWS or rows * longest > _CELLS):
                break
            entering.append(waiting.popleft())
        number = {prompt: i for i, prompt in enumerate(dict.fromkeys(text.prompt for text in entering))}
        entering.sort(key=lambda text: number[text.prompt])
        for part in pack(entering, lambda text: len(text.input), _PREFILL):
            self._read(part)
        if entering:
            self._place_prefixes()

    def _read(self, texts: list[Text]) -> None:
        """Run the inputs as one packed row of a forest; texts of one prompt stand side by side."""
        device, first = self._backbone.device, len(self._lengths)
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
        for number, text in enumerate(texts, first):
            self._rows[text] = [number]
            self._prefixes.take(text.prompt)

    def _move(self, origins: list[int], left: Sequence[Text]) -> None:
        for text in left:
            self._prefixes.release(text.prompt)
        self._make_room(len(origins), 0)
        moved = [row for row, origin in enumerate(origins) if origin != row]
        to, taken = torch.tensor([moved, [origins[row] for row in moved]], dtype=torch.int64, device=self._backbone.device)
        longest, had = int(self._lengths.max()), len(self._lengths)
        for cached in self._cache:
            for room in cached:
                room[to, :, :longest] = room[taken, :, :longest]
                room[len(origins) : had, :, :longest] = 0  # behind the next text there: a hidden value that is not a number would be seen
        kept = torch.tensor(origins, dtype=torch.int64, device=self._backbone.device)
        self._last, self._lengths = self._last[kept], self._lengths[kept]
        self._place_prefixes()

    def _place_prefixes(self) -> None:
        self._tiles = self._prefixes.tiles([text.prompt for text in self._text_of_row])

    def _feed(self, tokens: Tensor) -> None:
        rows, longest = len(self._lengths), int(self._lengths.max()) + 1
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
        rows, used = max(rows, had_rows), len(self._lengths)

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
        if self._rows or not waiting:
            return
        prompt = waiting[0].prompt
        while waiting and waiting[0].prompt is prompt and (not self._rows or self.rows + waiting[0].beams <= _ROWS):
            self._rows[waiting.popleft()] = [len(self._rows)]
        for text in self._rows:  # of a decoder that counts from 0
            text.max_new_tokens = min(text.max_new_tokens, backbone.max_positions)
        self._states, self._mask = encoder_states(backbone, prompt, [text.input for text in self._rows])
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self._feed(torch.full((len(self._rows),), backbone.decoder_start, device=backbone.device))

    def _move(self, origins: list[int], left: Sequence[Text]) -> None:
        kept = torch.tensor(origins, dtype=torch.int64, device=self._backbone.device)
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
        if batch.rows <= _ROWS * 3 // 4:
            batch.admit(waiting)
        finished = len(batch.step())
        done += finished
        if on_progress and finished:
            on_progress(done, total)


def _in_place(origins: Sequence[int]) -> list[int]:
    """An order of rows, each given by the row that it continues, in which as many as can stay where they are: the others fill gaps."""
    places: list[int | None] = [None] * len(origins)
    moving = []
    for number, origin in enumerate(origins):
        if origin < len(places) and places[origin] is None:
            places[origin] = number
        else:
            moving.append(number)
    others = iter(moving)
    return [next(others) if number is None else number for number in places]
