"""Proposals that are made once: what a maker of wordings said, and what that cost, is on disk and said again after an interruption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from random import Random

from prompt_core.text.budget import Budget
from prompt_core.text.journal import Journal
from prompt_core.text.search import Propose, Tried


class Remembered:
    """A maker of wordings with a memory.

    Args:
        name: of the maker, with all that its answers depend on beside what it is called with.
        propose: the maker.
        journal: where its answers are kept.
        budget: what it spends from; an answer from memory is booked as it was the first time.
    """

    def __init__(self, name: str, propose: Propose, journal: Journal, budget: Budget) -> None:
        self._name, self._propose, self._journal, self._budget = name, propose, journal, budget

    def __call__(self, ranked: Sequence[Tried], random: Random) -> list[str]:
        """Its wordings, given the candidates from best to worst."""
        seed = random.getrandbits(64)
        about = json.dumps([self._name, seed, [[tried.candidate.digest, len(tried.values)] for tried in ranked]])
        key = hashlib.sha256(about.encode()).hexdigest()[:32]
        known = self._journal.get(key)
        if known is None:
            tokens, dollars = self._budget.spent_tokens, self._budget.spent_dollars
            wordings = list(self._propose(ranked, Random(seed)))
            known = [wordings, self._budget.spent_tokens - tokens, self._budget.spent_dollars - dollars]
            self._journal.put({key: known})
        else:
            self._budget.spent_tokens += known[1]
            self._budget.spent_dollars += known[2]
        return list(known[0])
