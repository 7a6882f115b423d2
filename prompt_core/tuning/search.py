"""The search over settings: waves of trials by successive halving on the fleet, scored on held-out folds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import polars as pl

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.data.clean import example_id
from prompt_core.data.demonstrations import fair_draw
from prompt_core.errors import PromptmillError, Unreachable
from prompt_core.prompts import Compactions
from prompt_core.space import Range, Setting
from prompt_core.task import TaskSpec
from prompt_core.template import Template
from prompt_core.trials import Measured, SearchRecord, Trial, preferred
from prompt_core.tuning.candidate import Candidate, with_settings
from prompt_core.tuning.diary import Diary
from prompt_core.tuning.fingerprint import fingerprint
from prompt_core.tuning.folds import folds_of, join_sides
from prompt_core.tuning.gradient import Fleet
from prompt_core.tuning.held_out_texts import HeldOutTexts, Written
from prompt_core.tuning.parallel import agreed, is_writer
from prompt_core.tuning.prepared import Prepared, Sides
from prompt_core.tuning.propose import propose, rungs_of, shown_rows, space_of
from prompt_core.tuning.score import held_out_score
from prompt_core.tuning.starts import Starts


@dataclass(frozen=True)
class SearchStep:
    """What a progress bar or a run log shows while settings are searched.

    Attributes:
        task: its name.
        wave, waves: this wave (from 1) and how many there will be at most.
        step, rung: steps of this wave's prompts, and at how many they are measured next.
        trials: still in this wave.
        done, total: prompt-steps of the whole search, so far and expected.
        best: what the best settings so far gave, if anything is measured.
        eta_seconds: expected time to the end of the search.
    """

    task: str
    wave: int
    waves: int
    step: int
    rung: int
    trials: int
    done: int
    total: int
    best: Measured | None
    eta_seconds: float


OnSearch = Callable[[SearchStep], None]


@dataclass(eq=False)
class Search:
    """A search over the settings of a task: `run`, then tune its `finalist`, then `close`.

    Every trial has a prompt per fold, tuned on the others. `together` trials make a wave, one fleet. After each rung
    the trials are scored on what their folds hold out, and one in `eta` goes on (Jamieson & Talwalkar 2016,
    arXiv:1502.07943); in the first wave of a ladder one of each kind and start, for some learn late and end ahead. A trial's
    steps are those of its best rung. Where prompts of several kinds or starts write, the best trial of each also writes at each
    rung and what it writes decides, see `preferred`; in the first wave one of each kind goes on.

    Args:
        task: with a search.
        sides: its (train, validation) frames; their rows are searched together.
        backbone: the loaded frozen model.
        on_search: called after every step of a wave.
        checkpoints: a folder for what an interrupted search goes on from; the result is the same, to the bit.
        starts: text prompts that trials may start from, `prompt.start: prompt`, and the folds that go with them.

    Raises:
        PromptmillError: there are too few examples for the folds.
    """

    task: TaskSpec
    sides: Sides
    backbone: Backbone
    on_search: OnSearch | None = None
    checkpoints: Path | None = None
    starts: Starts | None = None
    rows: pl.DataFrame = field(init=False)
    held_out_texts: HeldOutTexts | None = field(init=False)

    def __post_init__(self) -> None:
        assert self.task.search  # whoever makes a search has looked
        self._spec = self.task.search
        self.rows = join_sides(self.sides)
        self._space = space_of(self.task, self._spec, self.backbone, len(self.rows), from_text=self.starts is not None)
        self._rungs = rungs_of(self.task, self._space, self._spec.eta, len(self.rows))
        if self.starts:
            self._folds = [list(held_out) for held_out in self.starts.folds]
        else:
            self._folds = folds_of(self.rows, self.task, self._spec.folds, self._shown())
        writes = self._is_settled_by_writing()
        self.held_out_texts = HeldOutTexts(self.task, self.rows, self._folds, self.backbone) if writes else None
        space = {path: values.model_dump() if isinstance(values, Range) else values for path, values in self._space.items()}
        texts = [text.digest for text in (*self.starts.texts, self.starts.whole)] if self.starts else []
        self._name = fingerprint(self.task, self.rows, self.backbone, space, self._folds, texts)[:32]
        self._path = self.checkpoints / f"{self._name}.json" if self.checkpoints else None
        if self._path and not self._path.exists():
            self._forget()  # what lies about belongs to a search whose diary is gone
        self._diary = Diary.read(self._path)
        self._compactions = Compactions()
        self._since = time.monotonic() - self._diary.seconds - (self.starts.seconds if self.starts else 0.0)
        self._began, self._done_before = time.monotonic(), self._diary.prompt_steps

    def _is_settled_by_writing(self) -> bool:
        """Whether prompts are compared of which likelihood does not say which one writes better: of several kinds or starts."""
        if not self.task.writes or self.task.distill:  # a distilled prompt is to answer as its context does, by chances
            return False
        kinds, starts = (self._space.get(f"prompt.{name}", ()) for name in ("kind", "start"))
        assert not isinstance(kinds, Range) and not isinstance(starts, Range)  # refused with the task file
        return len(kinds) > 1 or len(starts) > 1

    def _shown(self) -> set[str]:
        """Ids of the texts that some prompt starts from as solved examples."""
        place, fields = self.task.prompt.start_from, Template(self.task).fields
        text = TunedPrompt.load(self.task.locate(place)).manifest.text if place else None
        solved = text.demonstrations if text and not text.retrieval else ()
        drawn = fair_draw(self.rows, shown_rows(self.task, self._space))["_id"]
        return {*drawn, *(example_id([each.fields.get(name, "") for name in fields]) for each in solved)}

    def run(self) -> SearchRecord:
        """Go through the waves, or what an interruption left of them.

        Raises:
            PromptmillError: no trial could be measured; or as `Fleet.advance`.
        """
        diary = self._diary
        while not diary.ended:
            if not diary.wave:
                left = self._spec.trials - len(diary.trials)
                count = min(self._spec.together, left)
                proposed = propose(self.task, self._space, diary.trials, count, self._spec.together) if left else []
                if not proposed:
                    diary.ended = "space" if left else "trials"
                    break
                diary.wave = [Trial(settings=settings) for settings in proposed]
                self._note()
            self._run_wave()
        self._note()
        measured = [number for number, trial in enumerate(diary.trials) if trial.best]
        if not measured:
            what = f"none of {len(diary.trials)} trials could be measured; the first: {diary.trials[0].reason}"
            raise PromptmillError(f"task {self.task.name}: tune.search", what, "Change tune.search.space.")
        spec = self._spec.model_copy(update={"space": self._space})
        return SearchRecord(
            spec=spec.model_dump(mode="json"),
            score="log loss" if self.task.objective == "classify" else "loss per target token",
            trials=tuple(diary.trials),
            chosen=measured[preferred([best for trial in diary.trials if (best := trial.best)])],
            ended=diary.ended,
            rows=sum(map(len, self._folds)),
            prompt_steps=diary.prompt_steps,
            tokens=diary.tokens,
            optuna=version("optuna"),
        )

    @property
    def seconds(self) -> float:
        """Time that the search took so far, by all processes that worked on it; what it starts from is not counted."""
        return self._diary.seconds

    def prompt_steps(self, trial: Trial) -> int:
        """Steps of a trial's prompts."""
        return len(self._folds) * max((rung.steps for rung in trial.rungs), default=0)

    def finalist(self, record: SearchRecord, number: int | None = None) -> Prepared:
        """The task with the settings chosen, or those of the trial `number`, on all examples, to be tuned as any other."""
        if number is not None:
            record = record.model_copy(update={"chosen": number})
        trial = record.trials[record.chosen]
        assert trial.best is not None  # only what was measured is tuned
        task = self._with(trial.settings, trial.best.steps)
        source = self.starts.whole if self.starts and task.prompt.start == "prompt" else None
        return Prepared(task, (self.rows, None), self.backbone, record, source, self._compactions)

    def _with(self, settings: Mapping[str, Setting], steps: int) -> TaskSpec:
        handed = {"prompt.start_from": "-"} if self.starts and settings.get("prompt.start") == "prompt" else {}
        return with_settings(self.task, {**settings, **handed}, steps, self._rungs[0])

    def _candidate(self, task: TaskSpec) -> Candidate:
        sources = self.starts.texts if self.starts and task.prompt.start == "prompt" else None
        return Candidate.of(task, self.rows, self._folds, self.backbone, sources, self._compactions)

    def averaged(self, ready: Prepared) -> TunedPrompt:
        """The mean of the folds' prompts under the settings chosen, in place of a tuning on all examples.

        Raises:
            PromptmillError: a fold cannot be tuned again, which the search did.
        """
        folds = self._candidate(ready.task)
        checkpoint = self._path.with_suffix(".average.safetensors") if self._path else None
        fleet = Fleet(self.backbone, folds.members, checkpoint)
        fleet.advance()
        records = []
        for record in fleet.finish():
            if isinstance(record, PromptmillError):
                raise record
            records.append(record)
        return ready.artifact(folds.average_into(ready, records))

    def close(self) -> None:
        """Remove what an interrupted search would have gone on from."""
        if self._path and is_writer():
            self._path.unlink(missing_ok=True)
            self._forget()

    def _run_wave(self) -> None:
        diary, wave = self._diary, self._diary.wave
        candidates: dict[int, Candidate] = {}
        for number, trial in enumerate(wave):
            try:
                candidates[number] = self._candidate(self._with(trial.settings, self._rungs[-1]))
            except Unreachable:  # says nothing about the settings
                raise
            except PromptmillError as error:
                wave[number] = trial.model_copy(update={"outcome": "failed", "reason": str(error)})
        if candidates:
            checkpoint = self._path.with_suffix(f".{len(diary.trials)}.safetensors") if self._path else None
            fleet = Fleet(self.backbone, [member for c in candidates.values() for member in c.members], checkpoint)
            self._done_before += fleet.prompt_steps  # what a checkpoint brought
            self._climb(fleet, candidates)
            diary.prompt_steps += fleet.prompt_steps
            diary.tokens += fleet.tokens
        diary.trials, diary.wave, diary.measured = [*diary.trials, *wave], [], 0
        self._note()
        if candidates:
            fleet.close()  # not before its trials are on disk

    def _climb(self, fleet: Fleet, going: dict[int, Candidate]) -> None:
        """Take a wave's trials from rung to rung. What is measured already is not measured again."""
        diary, wave = self._diary, self._diary.wave
        for rung, steps in enumerate(self._rungs):
            for step in range(1, steps + 1):
                if diary.measured <= rung and self._time_is_up():
                    diary.ended = "time"
                    wave[:] = [trial if trial.outcome else trial.model_copy(update={"outcome": "stopped"}) for trial in wave]
                    return
                before = fleet.prompt_steps
                fleet.advance(step)
                if fleet.prompt_steps > before:
                    self._report(fleet, going, step, rung)
            if diary.measured <= rung:
                for number, candidate in going.items():
                    wave[number] = self._measured(fleet, wave[number], candidate, steps)
                    diary.tokens += candidate.held_out_tokens()
                if self.held_out_texts:
                    for number in self._leaders(going, rung):
                        wave[number] = self._written(wave[number], self.held_out_texts.of_trial(going[number]))
                diary.measured = rung + 1
                self._note()
            through = sorted((n for n in going if len(wave[n].rungs) > rung), key=lambda n: (wave[n].rungs[rung].score, n))
            last = rung + 1 == len(self._rungs)
            kept = through if last else [n for alike in self._alike(through) for n in alike[: self._staying(len(alike))]]
            for number in through:
                if last or number not in kept:
                    wave[number] = wave[number].model_copy(update={"outcome": "complete" if last else "dropped"})
            for number in [number for number in going if number not in kept]:
                fleet.drop(going.pop(number).members)

    def _alike(self, numbers: Iterable[int]) -> list[list[int]]:
        """Trials of the wave by what they are compared with after a rung: in the first wave, where texts are written, their own kind;
        in that of a ladder their own kind and start."""
        groups: dict[object, list[int]] = {}
        for number in numbers:
            kind, start = self._diary.wave[number].kind_and_start
            own = (kind, start) if self.starts else kind if self.held_out_texts else None
            groups.setdefault(None if self._diary.trials else own, []).append(number)
        return list(groups.values())

    def _leaders(self, going: Iterable[int], rung: int) -> list[int]:
        """Of each kind and start the trial of the wave with the best score on a rung, unless one of an earlier wave was as good."""
        best: dict[object, float] = {}
        for trial in self._diary.trials:
            if len(trial.rungs) > rung and trial.best:
                best[trial.kind_and_start] = min(trial.rungs[rung].score, best.get(trial.kind_and_start, math.inf))
        leaders: dict[object, int] = {}
        for number in going:
            trial = self._diary.wave[number]
            if len(trial.rungs) > rung and trial.rungs[rung].score < best.get(trial.kind_and_start, math.inf):
                best[trial.kind_and_start], leaders[trial.kind_and_start] = trial.rungs[rung].score, number
        return list(leaders.values())

    def _written(self, trial: Trial, written: Written) -> Trial:
        """The trial with what it wrote on its last rung."""
        self._diary.tokens += written.tokens
        return trial.model_copy(update={"rungs": (*trial.rungs[:-1], written.beside(trial.rungs[-1]))})

    def _staying(self, trials: int) -> int:
        return -(-trials // self._spec.eta)

    def _measured(self, fleet: Fleet, trial: Trial, candidate: Candidate, steps: int) -> Trial:
        """The trial with one more rung, or failed."""
        try:
            for member in candidate.members:
                fleet.place(member)
        except PromptmillError as error:
            return trial.model_copy(update={"outcome": "failed", "reason": str(error)})
        score, accuracy = held_out_score(self.backbone, candidate.settled_folds(), fleet.budget)
        if not math.isfinite(score):
            return trial.model_copy(update={"outcome": "failed", "reason": f"the score after {steps} steps is {score}"})
        rounded = Measured(steps=steps, score=round(score, 6), accuracy=None if accuracy is None else round(accuracy, 6))
        return trial.model_copy(update={"rungs": (*trial.rungs, rounded)})

    def _time_is_up(self) -> bool:
        """Not before something is measured: a search that ends has something to choose."""
        if self._spec.minutes is None or not any(trial.rungs for trial in (*self._diary.trials, *self._diary.wave)):
            return False
        return agreed(time.monotonic() - self._since >= 60 * self._spec.minutes)

    def _note(self) -> None:
        self._diary.seconds = time.monotonic() - self._since - (self.starts.seconds if self.starts else 0.0)
        self._diary.write(self._path)

    def _report(self, fleet: Fleet, going: dict[int, Candidate], step: int, rung: int) -> None:
        if not self.on_search:
            return
        diary, spec = self._diary, self._spec
        done = diary.prompt_steps + fleet.prompt_steps
        planned, after = len(diary.trials) + len(diary.wave), 0
        while planned < spec.trials:
            size = min(spec.together, spec.trials - planned)
            planned, after = planned + size, after + self._cost([size])
        total = done + self._cost([len(alike) for alike in self._alike(going)], rung, step) + after
        seconds = time.monotonic() - self._began
        eta = seconds / max(1, done - self._done_before) * (total - done)
        if spec.minutes is not None:
            eta = min(eta, max(0.0, 60 * spec.minutes - (time.monotonic() - self._since)))
        measured = [best for trial in (*diary.trials, *diary.wave) if (best := trial.best)]
        best = measured[preferred(measured)] if measured else None
        waves = -(-spec.trials // spec.together)
        wave = min(waves, len(diary.trials) // spec.together + 1)
        self.on_search(SearchStep(self.task.name, wave, waves, step, self._rungs[rung], len(going), done, total, best, eta))

    def _cost(self, trials: Sequence[int], rung: int = 0, step: int = 0) -> int:
        """Prompt-steps of a wave from here on, which has so many trials that are alike."""
        cost = 0
        for steps in self._rungs[rung:]:
            cost += sum(trials) * len(self._folds) * (steps - step)
            trials, step = [self._staying(alike) for alike in trials], steps
        return cost

    def _forget(self) -> None:
        if self.checkpoints and is_writer():
            for file in self.checkpoints.glob(f"{self._name}.*"):
                file.unlink()
