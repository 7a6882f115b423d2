"""The two assets that open the test rows: what needs no tuning, measured once, and the tuned prompt beside it."""

import dagster as dg

from pipelines.batch import Inputs, Made, each_task
from pipelines.failures import plain_failures
from pipelines.io_managers import ContenderFiles, contenders_digest, evaluation_digest
from pipelines.metadata import baselines_metadata, evaluation_metadata
from pipelines.partitions import TASKS
from pipelines.resources import RunLog, Store, TaskFolder
from prompt_core import PromptmillError
from prompt_core.evaluation import corrected


@dg.asset(
    partitions_def=TASKS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    group_name="prompts",
    kinds={"pytorch", "scikitlearn"},
    owners=["team:promptmill"],
    code_version="2",
    io_manager_key="contenders",
    pool="gpu",
)
@plain_failures
def baselines(
    context: dg.AssetExecutionContext, tasks: TaskFolder, progress: RunLog, contenders: dg.ResourceParam[ContenderFiles], splits: Inputs
):
    """What a tuned prompt has to beat, on the test rows: the untuned model asked plainly and with demonstrations, or label names and a
    linear probe. Measured once for splits, model and template, however many prompts are tuned."""
    from prompt_core.backbone import load_backbone
    from prompt_core.evaluation.evaluate import measure_untuned
    from prompt_core.evaluation.untuned import untuned_digest

    def make(key: str) -> Made:
        task, sides = tasks.load(key), splits[key]
        backbone = load_backbone(task.backbone, task.folder)
        made_of = untuned_digest(task, sides, backbone)
        found = known = contenders.remembered(context.asset_key.path[-1], made_of)
        if found is None:
            found = measure_untuned(task, sides, backbone, shown.contender)
            contenders.remember(context.asset_key.path[-1], made_of, found)
        return Made(found, contenders_digest(found), baselines_metadata(found, task, sides, known=known is not None))

    with progress.follow(context) as shown:
        return each_task(context, make, splits, on_task=shown.task)


@dg.asset(
    partitions_def=TASKS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    group_name="prompts",
    kinds={"pytorch", "scipy"},
    owners=["team:promptmill"],
    code_version="3",
    io_manager_key="evaluations",
    pool="gpu",
)
@plain_failures
def evaluation(
    context: dg.AssetExecutionContext,
    tasks: TaskFolder,
    store: Store,
    progress: RunLog,
    contenders: dg.ResourceParam[ContenderFiles],
    splits: Inputs,
    baselines: Inputs,
    tuned_prompt: Inputs,
):
    """The tuned prompt beside every baseline and what runs in production, on the same test rows, with the verdict of the gate.

    A run of several tasks tests as many times, so that one may pass by chance. The metadata says which gains are shown among all of
    them (Holm). The verdict is of the task alone: it must not depend on what else was tuned that night.
    """
    from prompt_core import evaluate
    from prompt_core.backbone import load_backbone
    from prompt_core.evaluation.untuned import untuned_digest

    def make(key: str) -> Made:
        task, sides, prompt, untuned = tasks.load(key), splits[key], tuned_prompt[key], baselines[key]
        backbone = load_backbone(task.backbone, task.folder)
        expected = contenders.remembered("baselines", untuned_digest(task, sides, backbone))
        if expected is None or contenders_digest(expected) != contenders_digest(untuned):
            what = "baselines are of other rows, settings or versions than splits and task are now"
            raise PromptmillError(f"evaluation[{key}]", what, "Materialize baselines again.")
        live = store.open().live(task.name)
        measured = evaluate(task, prompt, sides, backbone, live, shown.contender, untuned)
        return Made(measured, evaluation_digest(measured), evaluation_metadata(measured, task, sides, prompt))

    def among_all(made: dict[str, Made]) -> dict[str, dict[str, str]]:
        judged = dict(zip(made, corrected([each.value for each in made.values()]), strict=True)) if len(made) > 1 else {}
        if judged:
            alone, among = (sum(each.verdict.passed for each in found) for found in ([m.value for m in made.values()], judged.values()))
            context.log.info(f"{alone} of {len(made)} tasks pass their gates, {among} of them among all {len(made)} tests too (Holm)")
        return {key: {"among the tasks of this run": each.verdict.reasons[-1]} for key, each in judged.items()}

    with progress.follow(context) as shown:
        return each_task(context, make, splits, baselines, tuned_prompt, on_task=shown.task, seen_together=among_all)
