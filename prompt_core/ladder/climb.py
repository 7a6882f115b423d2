"""`Ladder`: text, then soft and deep prompts that start from it, and deep ones from the task's own root, by one score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone, EncoderDecoder
from prompt_core.data.digest import frame_digest
from prompt_core.deploy import kinds_for
from prompt_core.errors import PromptmillError
from prompt_core.ladder.record import LadderRecord, Rung
from prompt_core.ladder.texts import Texts
from prompt_core.manifest import DataRecord
from prompt_core.prediction import encoding_of, restore, restore_classifier
from prompt_core.prompts import lower
from prompt_core.task import TaskSpec
from prompt_core.text.search import OnRound
from prompt_core.trials import Measured, SearchRecord, preferred
from prompt_core.tuning.build import build_objective
from prompt_core.tuning.folds import join_sides
from prompt_core.tuning.held_out_texts import HeldOutTexts
from prompt_core.tuning.objective import Objective
from prompt_core.tuning.prepared import Prepared, Sides, encode_frame
from prompt_core.tuning.score import Fold, held_out_score
from prompt_core.tuning.search import OnSearch, Search
from prompt_core.tuning.starts import Starts


class Ladder:
    """Climbs from text: `climb`, then tune what it gives if that is to be tuned, then `close`.

    Every rung is measured on the same rows that it has not seen: the validation rows, or without them all rows in folds, each by
    prompts that were searched and tuned without it. The score is that of a search over settings, of which the rungs above text
    are the trials. Where the task writes, what the best of each kind and start write for these rows decides, see `preferred`.

    Args:
        task: with `prompt.kind: auto` and the part `text`.
        sides: its (train, validation) frames.
        backbone: the loaded frozen model.
        on_round, on_search: called after every round of a text search, and every step of the search over settings.
        checkpoints: a folder for what an interrupted ladder goes on from without paying again.

    Raises:
        PromptmillError: the model is no causal one, or there are too few examples for the folds.
    """

    def __init__(
        self,
        task: TaskSpec,
        sides: Sides,
        backbone: Backbone,
        on_round: OnRound | None = None,
        on_search: OnSearch | None = None,
        checkpoints: Path | None = None,
    ) -> None:
        if not backbone.causal or isinstance(backbone, EncoderDecoder):
            what = f"climbs from text, but {backbone.identity.name} is no causal model"
            raise PromptmillError(f"task {task.name}: text", what, "Leave the part text out, or use a causal model.")
        self._task, self._sides, self._backbone = task, sides, backbone
        self._on_search, self._checkpoints = on_search, checkpoints
        self._rows = join_sides(sides)
        self._texts = Texts(task, sides, backbone, on_round, checkpoints)
        self._search: Search | None = None

    def climb(self) -> TunedPrompt | Prepared:
        """The text prompt where nothing beats it, else what is to be tuned on all rows; of a kind that runs where the task says.

        Raises:
            PromptmillError: as `tune_text` and `Search.run`.
        """
        starts = self._texts.search()
        words = starts.without_demonstrations()
        search = self._search = Search(self._task, self._sides, self._backbone, self._on_search, self._checkpoints, words)
        text = self._text_rung(starts, search.held_out_texts)
        record = search.run()
        above = _rungs_above(record, search)
        ready = {rung.name: search.finalist(record, rung.trial) for rung in above if rung.trial is not None}
        rungs = [text, *(rung.model_copy(update={"tokens": ready[rung.name].tokens if rung.name in ready else None}) for rung in above)]
        assert self._task.search  # every `auto` has one
        fitting = kinds_for(self._task.deploy)
        able = [(number, rung.best) for number, rung in enumerate(rungs) if rung.best and rung.kind in fitting]
        ladder = LadderRecord(
            rungs=tuple(rungs),
            chosen=able[preferred([best for _, best in able])][0],
            score=record.score,
            metric=self._task.gate_metric if search.held_out_texts else None,
            held_out="validation rows" if self._texts.validates else "folds",
            rows=record.rows,
            text=self._task.without_places(self._backbone.identity.name)["text"],
        )
        seconds = {text.name: starts.seconds} | _shares(above, search.seconds)
        if ladder.best.kind == "text":
            return self._of_text(starts.whole, record, ladder, seconds)
        best = ready[ladder.best.name]
        best.found |= {"ladder": ladder, "text_search": starts.whole.manifest.text_search}
        best.seconds |= seconds
        return best

    def close(self) -> None:
        """Remove what an interrupted ladder would have gone on from."""
        self._texts.close()
        if self._search:
            self._search.close()

    def _text_rung(self, starts: Starts, held_out_texts: HeldOutTexts | None) -> Rung:
        folds = [self._text_fold(text, held_out) for text, held_out in zip(starts.texts, starts.folds, strict=True)]
        score, accuracy = held_out_score(self._backbone, folds, self._task.tune.batch_tokens)
        found = starts.whole.manifest.text_search
        assert found is not None  # of every text prompt
        best = Measured(steps=0, score=round(score, 6), accuracy=None if accuracy is None else round(accuracy, 6))
        if held_out_texts:
            longest = starts.whole.manifest.max_new_tokens
            assert longest is not None  # of every text prompt that writes
            prompts = [(state, encoding_of(text, self._backbone)) for (state, _, _), text in zip(folds, starts.texts, strict=True)]
            best = held_out_texts.of(prompts, longest).beside(best)
        tried = len(found.tried)
        return Rung(name="text", kind="text", best=best, tokens=starts.whole.manifest.tokens, trial=None, tried=tried, prompt_steps=0)

    def _text_fold(self, text: TunedPrompt, held_out: Sequence[int]) -> Fold:
        """A text prompt and what it has not seen, as a trial's prompts are measured."""
        rows, labels = self._rows[list(held_out)], text.manifest.labels
        encoding = encoding_of(text, self._backbone)
        examples = encode_frame(text.worded, encoding, rows, labels)
        measured: Objective = (
            restore_classifier(text, encoding, self._backbone) if labels else build_objective(text.worded, encoding, self._backbone, ())
        )
        return lower(self._backbone, restore(text, encoding, self._backbone)), measured, examples

    def _of_text(self, whole: TunedPrompt, record: SearchRecord, ladder: LadderRecord, seconds: dict[str, float]) -> TunedPrompt:
        nothing = self._rows.clear()
        data = DataRecord(train_rows=len(self._rows), train=frame_digest(self._rows), validation_rows=0, validation=frame_digest(nothing))
        manifest = whole.manifest.model_copy(update={"search": record, "ladder": ladder, "data": data})
        return TunedPrompt(manifest, whole.tensors, whole.origin, seconds)


def _rungs_above(record: SearchRecord, search: Search) -> list[Rung]:
    """The trials of the search by what they tune and where they start, the best of each."""
    groups: dict[tuple[str, str], list[int]] = {}
    for number, trial in enumerate(record.trials):
        groups.setdefault(trial.kind_and_start, []).append(number)
    rungs = []
    for (kind, begun), numbers in groups.items():
        start = "text" if begun == "prompt" else begun
        able = [(n, best) for n in numbers if (best := record.trials[n].best)]
        taken = able[preferred([best for _, best in able])] if able else None
        rungs.append(
            Rung(
                name=f"{start} -> {kind}" if start else kind,
                kind="soft" if kind == "soft" else "deep",
                best=taken[1] if taken else None,
                tokens=None,
                trial=taken[0] if taken else None,
                tried=len(numbers),
                prompt_steps=sum(search.prompt_steps(record.trials[n]) for n in numbers),
                reason=None if taken else record.trials[numbers[0]].reason,
            )
        )
    return rungs


def _shares(rungs: Sequence[Rung], seconds: float) -> dict[str, float]:
    """The time of a search over its rungs, by their prompts' steps: they are tuned side by side."""
    total = sum(rung.prompt_steps for rung in rungs) or 1
    return {rung.name: round(seconds * rung.prompt_steps / total, 1) for rung in rungs}
