"""The search for a text prompt: wording, structure, label words and demonstrations in one budget, the Pareto front kept.

Rounds of candidates race over the training examples. Of each round half are new wordings, made from the best ones so far;
the others are choices of the categorical parts by a TPE sampler (Bergstra et al. 2011; Optuna), which learns from all
that was scored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

import optuna

from prompt_core.task import TaskSpec
from prompt_core.text.budget import OutOfBudget
from prompt_core.text.candidate import Candidate, own_candidate
from prompt_core.text.choices import Choices
from prompt_core.text.copying import Copies
from prompt_core.text.judge import Judge, fits
from prompt_core.text.race import Values, mean, race
from prompt_core.text.spec import TEMPLATE_CODE

Propose = Callable[[Sequence["Tried"], Random], Sequence[str]]
OnRound = Callable[["Round"], None]


@dataclass(frozen=True)
class Tried:
    """A candidate with what the search knows of it.

    Attributes:
        candidate: what was tried.
        tokens: length of its prompt.
        values: on the rows that it met, in the order of the blocks; fewer than all where it left the race.
        value: their mean.
    """

    candidate: Candidate
    tokens: int
    values: Values
    value: float

    def worth(self, penalty: float) -> float:
        """The value under a penalty per token."""
        return self.value - penalty * self.tokens


@dataclass(frozen=True)
class Round:
    """What a progress bar or a run log shows after a round.

    Attributes:
        task: its name.
        number, rounds: of this round, from 1, and how many there may be.
        best: so far.
        tried: candidates so far.
        tokens, dollars: spent so far.
        eta_seconds: expected time to the end of the last round.
    """

    task: str
    number: int
    rounds: int
    best: Tried
    tried: int
    tokens: int
    dollars: float
    eta_seconds: float


def shown_round(round: Round) -> dict[str, str]:
    """A round for people, as names and values."""
    spent = f"{round.tokens:,} tokens" + (f", {round.dollars:.4f} dollars" if round.dollars else "")
    return {"best": f"{round.best.value:.4f}", "candidates": str(round.tried), "spent": spent}


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        tried: every candidate that was scored, in order; the first is the task's own prompt.
        finalists: those that met every row, the best first, under the length penalty.
        ended: why it ended: "rounds", "patience", or the limit of the budget.
        rejected: wordings that were not tried, and why.
    """

    tried: Sequence[Tried]
    finalists: Sequence[Tried]
    ended: str
    rejected: Mapping[str, str]


class TextSearch:
    """A search over the training rows of a task.

    Args:
        task: `text` says what is searched and how long.
        judge: scores candidates.
        choices: what the sampler chooses from.
        propose: makers of wordings; asked in turn.
        copies: what wordings may not repeat.
    """

    def __init__(self, task: TaskSpec, judge: Judge, choices: Choices, propose: Sequence[Propose], copies: Copies) -> None:
        self._task, self._judge, self._choices, self._propose, self._copies = task, judge, choices, propose, copies
        self._spec = task.text
        self._random = Random(task.tune.seed)
        sampler = optuna.samplers.TPESampler(seed=task.tune.seed, constant_liar=True, n_startup_trials=self._spec.together)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._tried: dict[str, Tried] = {}
        self._rejected: dict[str, str] = {}
        self._surplus: list[str] = []  # wordings of a round that had room for no more
        self._turn = -1
        numbers = list(range(len(judge.rows)))
        self._random.shuffle(numbers)
        size = self._spec.block
        self._blocks = [numbers[i : i + size] for i in range(0, len(numbers), size)]

    def run(self, on_round: OnRound | None = None) -> Found:
        """Search until the rounds, the patience or the budget end.

        Raises:
            PromptmillError: the task's own prompt cannot be asked.
            OutOfBudget: the budget does not admit one round over the task's own prompt.
        """
        own = own_candidate(self._task)
        self._judge.encoding(own)  # its errors are the user's
        self._race([own])  # alone, so that it meets every row: what is found has to be better on all of them
        ended, waited, began = "rounds", 0, time.monotonic()
        for number in range(1, self._spec.rounds + 1):
            before = self._best().worth(self._spec.length_penalty)
            try:
                self._round(self._given(own) if number == 1 else [])
            except OutOfBudget as limit:
                ended = str(limit)
                break
            if on_round:
                eta = (time.monotonic() - began) / number * (self._spec.rounds - number)
                tokens, dollars = self._judge.budget.spent_tokens, self._judge.budget.spent_dollars
                best, rounds = self._best(), self._spec.rounds
                on_round(Round(self._task.name, number, rounds, best, len(self._tried), tokens, dollars, eta))
            waited = waited + 1 if self._best().worth(self._spec.length_penalty) <= before else 0
            if waited >= self._spec.patience:
                ended = "patience"
                break
        return Found(list(self._tried.values()), self._finalists(), ended, dict(self._rejected))

    def _round(self, given: Sequence[Candidate]) -> None:
        """Those given; of the others half vary the wording of the best ones, half are the sampler's."""
        half = self._spec.together // 2
        fresh = [self._reworded(wording) for wording in self._new_wordings(half)]
        trials = [self._study.ask() for _ in range(self._spec.together - len(fresh))]
        asked = [self._choices.candidate(trial, self._wordings()) for trial in trials]
        self._race([*given, *fresh, *asked])
        for trial, candidate in zip(trials, asked, strict=True):
            tried = self._tried.get(candidate.digest)
            if tried is None:
                self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                self._study.tell(trial, tried.worth(self._spec.length_penalty))

    def _given(self, own: Candidate) -> list[Candidate]:
        """The task's own prompt with examples, as written and as lines; and its own and its file's wordings in each structure."""
        wordings = [own.wording, *(wording for wording in self._spec.wordings if self._is_fair(wording))]
        every = self._choices.structures
        worded = [
            replace(own, wording=wording, structure=structure)
            for wording in dict.fromkeys(wordings)
            for structure in every[: 1 if len(wordings) > self._spec.together else None]
            if wording
        ]
        shown = [own, replace(own, structure="lines")] if "lines" in every else [own]
        return [*map(self._choices.with_examples, shown), *worded]

    def _reworded(self, wording: str) -> Candidate:
        """The new wording with everything else as in one of the best candidates."""
        ranked = self._ranked()
        pattern = ranked[min(self._random.randrange(4), len(ranked) - 1)].candidate
        structure = pattern.structure if pattern.structure != "as_written" else self._choices.structures[0]
        return replace(pattern, wording=wording, structure=structure)

    def _new_wordings(self, count: int) -> list[str]:
        known = {tried.candidate.wording for tried in self._tried.values()} | self._rejected.keys()
        found, self._surplus = self._surplus, []
        known.update(found)
        ranked = self._ranked()
        for _ in range(4 * count):
            if len(found) >= count or not self._propose:
                break
            self._turn += 1
            draws = Random(self._random.getrandbits(64))  # its own, whatever the others take
            for wording in self._propose[self._turn % len(self._propose)](ranked, draws):
                wording = " ".join("".join(sign if sign.isprintable() else " " for sign in wording).split())
                if not wording or wording in known:
                    continue
                known.add(wording)
                if self._is_fair(wording):
                    found.append(wording)
        self._surplus = found[count:]
        return found[:count]

    def _is_fair(self, wording: str) -> bool:
        """Whether a wording may be tried; why not is noted."""
        if copied := self._copies.in_wording(wording):
            self._rejected[wording] = f'repeats a training example: "{copied}"'
        elif TEMPLATE_CODE.search(wording):
            self._rejected[wording] = "holds template code"
        return wording not in self._rejected

    def _race(self, candidates: Sequence[Candidate]) -> None:
        """Score what is new among the candidates, block by block, against the best ones so far."""
        fresh = {c.digest: c for c in candidates if c.digest not in self._tried}
        for digest, candidate in list(fresh.items()):
            if reason := fits(self._judge, candidate):
                self._rejected[candidate.wording] = reason
                del fresh[digest]
        entering = list(fresh.values())
        if not entering:
            return
        known = [tried.candidate for tried in self._ranked()[:2] if len(tried.values) == len(self._judge.rows)]
        runners = [*known, *entering]

        def score(alive: Sequence[int], block: Sequence[int]) -> list[Values]:
            return self._judge.values([runners[i] for i in alive], block)

        order = [number for block in self._blocks for number in block]
        for candidate, values in zip(runners, race(len(runners), self._blocks, score, keep=max(2, self._spec.keep)), strict=True):
            if candidate in known:  # met every row before, and may have left now
                continue
            if candidate.calibrated:  # on all that it met, rather than on each block
                (values,) = self._judge.values([candidate], order[: len(values)])
            self._tried[candidate.digest] = Tried(candidate, self._judge.tokens(candidate), values, mean(values))

    def _ranked(self) -> list[Tried]:
        """All that were tried: those that met more rows first, then the better ones."""
        penalty = self._spec.length_penalty
        return sorted(self._tried.values(), key=lambda t: (-len(t.values), -t.worth(penalty), t.candidate.digest))

    def _best(self) -> Tried:
        return self._ranked()[0]

    def _finalists(self) -> list[Tried]:
        return [tried for tried in self._ranked() if len(tried.values) == len(self._judge.rows)]

    def _wordings(self) -> list[str]:
        """The wordings by the best candidate that has each."""
        return list(dict.fromkeys(tried.candidate.wording for tried in self._ranked()))
