"""`evaluate`: the one place that opens the test rows. The tuned prompt, its baselines and what runs today, on the same rows."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import polars as pl

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone, load_backbone
from prompt_core.data import Splits, find_leakage
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError
from prompt_core.evaluation.baselines import OnContender, baselines, choosing
from prompt_core.evaluation.contender import Contender, Kind
from prompt_core.evaluation.distilled import distilled_contenders
from prompt_core.evaluation.gate import Rule
from prompt_core.evaluation.measure import About, Rows, evaluate_contenders
from prompt_core.evaluation.record import Cost, Evaluation, Leaked
from prompt_core.evaluation.wanted import Wanted, asked_once, wanted_of
from prompt_core.export.roundtrip import round_trips
from prompt_core.mixed import answer
from prompt_core.prediction import backbone_of, label_scores
from prompt_core.ready import ReadyPrompt
from prompt_core.seen import why_seen
from prompt_core.task import TaskSpec
from prompt_core.template import Template
from prompt_core.text.copying import Copies
from prompt_core.tuning.tags import TokenTags

_COUNTED = 500  # test inputs whose tokens are counted


def evaluate(
    task: TaskSpec,
    prompt: TunedPrompt,
    splits: Splits,
    backbone: Backbone | None = None,
    production: TunedPrompt | None = None,
    on_progress: OnContender | None = None,
    untuned: Sequence[Contender] | None = None,
) -> Evaluation:
    """Measure a tuned prompt on the test rows, beside every baseline and the prompt in production, and judge it.

    A prompt that writes is asked each input once; where the data has several answers to it, all of them are right. Where it has none,
    the teacher's is.

    Args:
        task: metrics and gate.
        prompt: the tuned prompt.
        splits: train and validation feed few-shot and probe, test is measured.
        backbone: the loaded frozen model; by default the task's own.
        production: what runs today, on whatever model; None where nothing does. The same prompt again is not compared with itself,
            and one that cannot answer keeps the gate shut.
        on_progress: called with (contender, finished rows, all rows).
        untuned: what `measure_untuned` found for these splits; by default it is measured here.

    Raises:
        PromptmillError: as `tune`, and where there are no test rows or the prompt is another task's.
    """
    _check_task(task, prompt)
    backbone = backbone or load_backbone(task.backbone, task.folder)
    production = None if production is None or production.digest == prompt.digest else production
    test, alike = asked_once(task, splits.test)
    asked = _asked(task, test, wanted_of(task, test.rows(named=True), alike))
    ready = ReadyPrompt.of(prompt, backbone)
    about = About(
        prompt.digest,
        production.digest if production else None,
        _unseen(task, prompt, production, splits),
        leaked=_leaked(task, prompt, splits),
        cost=_cost(prompt, ready, test),
        round_trips=round_trips(task, prompt, backbone, test.rows(named=True)),
    )
    if task.objective == "distill":
        try:
            if production:
                production.check_base(backbone.identity)
        except PromptmillError as error:
            about, production = about.with_rule(_not_compared(error)), None
        each_once = replace(splits, test=test)
        contenders, taught, saved = distilled_contenders(task, prompt, each_once, backbone, production, on_progress)
        about = replace(about, distilled=saved)
        return evaluate_contenders(task, _answered_by(asked, taught), contenders, about)
    contenders = list(measure_untuned(task, splits, backbone, on_progress) if untuned is None else untuned)
    if production is not None:
        try:
            contenders.append(_answered("production", _ready_production(production, backbone), test, on_progress))
        except PromptmillError as error:
            about = about.with_rule(_not_compared(error))
    contenders.append(_answered("tuned", ready, test, on_progress))
    return evaluate_contenders(task, asked, contenders, about)


def measure_untuned(
    task: TaskSpec, splits: Splits, backbone: Backbone | None = None, on_progress: OnContender | None = None
) -> list[Contender]:
    """The contenders that no tuning changes, on the test rows: measured once for splits, backbone and template, used for every prompt.

    What a distilled prompt is compared with is cut to its length and measured beside it: then there are none.

    Args: as of `evaluate`.
    """
    if task.objective == "distill":
        return []
    backbone = backbone or load_backbone(task.backbone, task.folder)
    seen, (test, _) = pl.concat([splits.train, splits.validation]), asked_once(task, splits.test)
    return baselines(task, seen, test.rows(named=True), backbone, _longest_answer(task, splits, backbone), on_progress)


def _longest_answer(task: TaskSpec, splits: Splits, backbone: Backbone) -> int | None:
    """Tokens that an untuned model may write: as many as a tuned prompt, whose tuning has seen the training targets."""
    if not task.writes:
        return None
    encoding = TaskEncoding(task, backbone, soft=False)
    return task.longest_answer(len(encoding.encode_target(target)) for target in splits.train[task.data.target])


def _asked(task: TaskSpec, test: pl.DataFrame, wanted: Wanted) -> Rows:
    fields = Template(task).fields
    return Rows(
        inputs=[{name: str(row[name]) for name in fields} for row in test.iter_rows(named=True)],
        targets=test[task.data.target].to_list() if task.data.target else [],
        wanted=wanted,
        columns={column: test[column].to_list() for column in task.evaluate.slices},
    )


def _answered_by(asked: Rows, taught: Sequence[str]) -> Rows:
    """The rows with a teacher's answer for the right one where the data have none."""
    given = asked.wanted.references or [[target] if target else [] for target in asked.targets or [""] * len(taught)]
    right = [list(texts) or [said] for texts, said in zip(given, taught, strict=True)]
    return replace(asked, targets=[texts[0] for texts in right], wanted=replace(asked.wanted, references=right))


def _answered(kind: Kind, ready: ReadyPrompt, test: pl.DataFrame, on_progress: OnContender | None) -> Contender:
    """A tuned prompt's answers to the test rows, a classifier's with its probabilities, and the time that they took.

    What is read is what users will have read: with the examples, say, that a prompt retrieves for each input.
    """
    shown = partial(on_progress, kind) if on_progress else None
    began = time.perf_counter()
    inputs = ready.encode_all(test.rows(named=True))
    if ready.scorer is None or isinstance(ready.scorer, TokenTags):
        texts = [found.text for found in answer([(ready, example) for example in inputs], shown)]
        return Contender(kind, kind, texts, seconds=time.perf_counter() - began)
    scores = label_scores(ready.backbone, ready.scorer, ready.state, inputs, len(ready.labels), ready.batch_tokens, shown)
    return choosing(kind, kind, scores, ready.labels, time.perf_counter() - began)


def _ready_production(production: TunedPrompt, backbone: Backbone) -> ReadyPrompt:
    """What is live on the model that it runs on, which need not be the task's any more."""
    try:
        production.check_base(backbone.identity)
    except PromptmillError:
        backbone = backbone_of(production)
    return ReadyPrompt.of(production, backbone)


def _not_compared(error: PromptmillError) -> Rule:
    return False, f"cannot be compared with what is in production: {' '.join(str(error).split())}"


def _check_task(task: TaskSpec, prompt: TunedPrompt) -> None:
    """Refuse a prompt that answers another question than the task asks: its baselines would be measured on the task's."""
    where = f"prompt {prompt.name}"
    if prompt.name != task.name:
        raise PromptmillError(where, f"is not of task {task.name}", "Give the prompt and the task that it was tuned by.")
    manifest, fields = prompt.manifest, ["objective", "extract"]
    if not (manifest.started_from or manifest.ladder):  # else it may have the words of a text prompt in place of the task's
        fields += ["template", "labels"]
    differing = [field for field in fields if getattr(prompt.task, field) != getattr(task, field)]
    if prompt.task.evaluate.beams != task.evaluate.beams:
        differing.append("evaluate.beams")
    if differing:
        raise PromptmillError(where, f"was tuned with another {differing[0]} than the task file has now", "Tune it again.")


def _unseen(task: TaskSpec, prompt: TunedPrompt, production: TunedPrompt | None, splits: Splits) -> tuple[Rule, ...]:
    """That the prompt has not seen the test rows is asked; of what is in production it is said, since it only looks better for it."""
    rules = []
    if why := why_seen(prompt, task, splits.train, splits.validation):
        rules.append((False, f"may have been tuned on test rows: {why}"))
    with suppress(PromptmillError):  # what cannot be read does not answer either, and then that is said
        if production and (why := why_seen(production, task, splits.train, splits.validation)):
            rules.append((True, f"what is in production may have been tuned on test rows, and then looks better than it is: {why}"))
    return tuple(rules)


def _cost(prompt: TunedPrompt, ready: ReadyPrompt, test: pl.DataFrame) -> Cost:
    tokens = [len(example.input) for example in ready.encode_all(test.head(_COUNTED).rows(named=True))]
    mean = round(sum(tokens) / max(len(tokens), 1), 2)
    return Cost(prompt_tokens=prompt.manifest.tokens, prompt_bytes=prompt.num_bytes, input_tokens=mean)


def _leaked(task: TaskSpec, prompt: TunedPrompt, splits: Splits) -> Leaked:
    """What the tuning could have seen of the held-out rows, and what a wording repeats of any row."""
    found, copied = find_leakage(splits, task), []
    if prompt.manifest.text:
        template = prompt.manifest.text.template
        wording = [template] if isinstance(template, str) else [text for message in template for text in message.values()]
        own = Copies([task.template] if isinstance(task.template, str) else [t for m in task.template for t in m.values()])
        rows = pl.concat([splits.train, splits.validation, splits.test]).select(*Template(task).fields, task.data.target)
        copies = Copies(str(value) for row in rows.iter_rows() for value in row)
        copied = [run for text in wording if (run := copies.in_wording(text)) and not own.in_wording(run)]
    return Leaked(exact=found.exact, near=found.near, copied=tuple(copied))
