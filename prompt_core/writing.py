"""A text that is asked for, and how it grows: by its likeliest tokens, by tokens drawn by seed, or by beam search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import nlargest
from typing import NamedTuple

from torch import Tensor

from prompt_core.prompts import PromptState
from prompt_core.sampling import Sampling


class Likely(NamedTuple):
    """Tokens that may come next, the likeliest first, or the one that was drawn, each with its log-probability."""

    tokens: Sequence[int]
    log_chances: Sequence[float]


class Step(NamedTuple):
    """How a row of a text goes on: `row` counts the text's own rows."""

    row: int
    token: int


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
        beams: how many beginnings are followed at once, 1 where tokens are drawn; with more than one the text is there when the
            search has ended.
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
    beams: int = 1
    ids: list[int] = field(default_factory=list)
    log_chance: float = 0.0
    ended: bool = False
    ending: int = 0
    cancelled: bool = False

    def __post_init__(self) -> None:
        self.beams = 1 if self.sampling else self.beams
        self._search = BeamSearch(self) if self.beams > 1 else None

    @property
    def mean_log_chance(self) -> float:
        """Mean log-probability of its tokens, those that ended it included."""
        return self.log_chance / max(1, len(self.ids) + self.ending)

    @property
    def longest(self) -> int:
        """Tokens that it takes at most, its prompt aside."""
        return len(self.input) + self.max_new_tokens

    @property
    def choice(self) -> int:
        """Tokens per row that it chooses among: so many that beams stay open where others end, as transformers counts them."""
        return max(2, 1 + len(self.ends)) * self.beams if self._search else 1

    def go_on(self, likely: Sequence[Likely]) -> list[Step]:
        """Write a token; how its rows go on, and how many there are from now on: none when it is finished.

        Args:
            likely: what may come behind each of its rows.
        """
        if self._search is None:
            ((token,), (log_chance,)) = likely[0]
            self.ids.append(token)
            self.log_chance += log_chance
            self._leave_out_end()
            finished = self.ended or len(self.ids) >= self.max_new_tokens
            return [] if finished or self.cancelled else [Step(0, token)]
        steps = [] if self.cancelled else self._search.go_on(likely)
        if not steps and self._search.found:
            best = self._search.found[0]
            self.ids, self.log_chance = best.ids, best.log_chance
            self._leave_out_end()
        return steps

    def start_over(self) -> None:
        """Forget what is written of it."""
        self.ids, self.log_chance, self.ended, self.ending = [], 0.0, False, 0
        self.__post_init__()

    def end_of(self, ids: Sequence[int]) -> int | None:
        """How many of the last tokens are an end and no part of the text; None where the text goes on."""
        if ids[-1] in self.closing:
            return 0
        return next((len(run) for run in self.ends if list(ids[-len(run) :]) == list(run)), None)

    def _leave_out_end(self) -> None:
        end = self.end_of(self.ids)
        self.ended, self.ending = end is not None, end or 0
        del self.ids[len(self.ids) - self.ending :]


@dataclass(frozen=True)
class Beginning:
    """A beginning of a text, or a whole one with what ended it.

    Attributes:
        ids: its tokens.
        log_chance: the sum of their log-probabilities.
    """

    ids: list[int]
    log_chance: float

    @property
    def mean(self) -> float:
        """Mean log-probability of its tokens."""
        return self.log_chance / len(self.ids)


class BeamSearch:
    """The likeliest text by beam search: of all ways to go on with the beginnings that are open, as many as there are beams stay.

    Texts are compared by the mean log-probability of their tokens, so that short ones have no advantage (Wu et al. 2016,
    arXiv:1609.08144, with exponent 1), and the search ends as that of transformers with `num_beams` and `length_penalty=1.0`:
    when it has found a text per beam and the best open beginning is no better than the worst of them.

    Attributes:
        found: the best whole texts, one per beam at most, the best first.
    """

    def __init__(self, text: Text) -> None:
        self._text = text
        self._open = [Beginning([], 0.0)]
        self.found: list[Beginning] = []

    def go_on(self, likely: Sequence[Likely]) -> list[Step]:
        """The beginnings that stay open, each with the row that it continues; none at the end of the search."""
        beams = self._text.beams
        ways = (
            (start.log_chance + log_chance, row, token)
            for row, (start, next_tokens) in enumerate(zip(self._open, likely, strict=True))
            for token, log_chance in zip(*next_tokens, strict=True)
        )
        steps: list[Step] = []
        still_open: list[Beginning] = []
        for rank, (log_chance, row, token) in enumerate(nlargest(self._text.choice, ways, key=lambda way: way[0])):
            grown = Beginning([*self._open[row].ids, token], log_chance)
            if self._text.end_of(grown.ids) is not None or len(grown.ids) >= self._text.max_new_tokens:
                if rank < beams:
                    self.found.append(grown)
            elif len(still_open) < beams:
                still_open.append(grown)
                steps.append(Step(row, token))
        self.found = sorted(self.found, key=lambda whole: whole.mean, reverse=True)[:beams]
        self._open = still_open
        over = len(self.found) == beams and (not still_open or still_open[0].mean <= self.found[-1].mean)
        return [] if over else steps
