"""`evaluate`: the one place that opens the test rows. The tuned prompt, its baselines and what runs today, on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import polars as pl

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone, load_backbone
from prompt_core.data import Splits
from prompt_core.encoding import TaskEncoding
from prompt_core.evaluation.baselines import OnContender, baselines
from prompt_core.evaluation.distilled import distilled_contenders
from prompt_core.evaluation.gate import Contender, Evaluation, evaluate_contenders
from prompt_core.task import TaskSpec
from prompt_core.template import Template


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

    Args:
        task: metrics and gate.
        prompt: the tuned prompt.
        splits: train and validation feed few-shot and probe, test is measured.
        backbone: the loaded frozen model; by default the task's own.
        production: what runs today; None where nothing does. The same prompt again is not compared with itself.
        on_progress: called with (contender, finished rows, all rows).
        untuned: what `measure_untuned` found for these splits; by default it is measured here.

    Raises:
        PromptmillError: as `tune`, and where there are no test rows.
    """
    backbone = backbone or load_backbone(task.backbone, task.folder)
    rows = list(splits.test.iter_rows(named=True))
    fields = Template(task).fields
    shown = [{name: str(row[name]) for name in fields} for row in rows]
    facts = splits.test[task.evaluate.must_contain].to_list() if task.evaluate.must_contain else None
    production = None if production is None or production.digest == prompt.digest else production
    if task.objective == "distill":
        contenders, taught, saved = distilled_contenders(task, prompt, splits, backbone, production, on_progress)
        targets = splits.test[task.data.target].to_list() if task.data.target else taught
        return evaluate_contenders(task, shown, targets, facts, contenders, prompt.digest, saved)
    contenders = list(measure_untuned(task, splits, backbone, on_progress) if untuned is None else untuned)

    def run(name: str, version: TunedPrompt) -> list[str]:
        return version.predict(rows, backbone, partial(on_progress, name) if on_progress else None)

    if production is not None:
        contenders.append(Contender("production", "production", run("production", production)))
    contenders.append(Contender("tuned", "tuned", run("tuned", prompt)))
    return evaluate_contenders(task, shown, splits.test[task.data.target].to_list(), facts, contenders, prompt.digest)


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
    seen = pl.concat([splits.train, splits.validation])
    rows = list(splits.test.iter_rows(named=True))
    return baselines(task, seen, rows, backbone, _longest_answer(task, splits, backbone), on_progress)


def _longest_answer(task: TaskSpec, splits: Splits, backbone: Backbone) -> int | None:
    """Tokens that an untuned model may write: as many as a tuned prompt, whose tuning has seen the training targets."""
    if not task.writes or task.evaluate.max_new_tokens:
        return task.evaluate.max_new_tokens if task.writes else None
    encoding = TaskEncoding(task, backbone, soft=False)
    return -(-5 * max(len(encoding.encode_target(target)) for target in splits.train[task.data.target]) // 4)
