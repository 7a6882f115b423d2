"""What leaves the pipeline: the published version, and the page that people read. Only publication moves an alias of the store."""

import json
from typing import TYPE_CHECKING

import dagster as dg

from pipelines.automation import publish_what_passed, report_everything
from pipelines.batch import Inputs, Made, each_task
from pipelines.failures import plain_failures
from pipelines.io_managers import Texts
from pipelines.metadata import publication_metadata, report_metadata
from pipelines.partitions import TASKS
from pipelines.resources import Store
from prompt_core import PromptmillError, PromptStore
from prompt_core.errors import Unreachable
from prompt_core.evaluation import Evaluation
from prompt_core.store.moves import PRODUCTION

if TYPE_CHECKING:  # torch loads in the steps that need it, not with the code location
    from prompt_core import TunedPrompt


@dg.asset(
    partitions_def=TASKS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    group_name="prompts",
    kinds={"safetensors"},
    owners=["team:promptmill"],
    code_version="2",
    io_manager_key="texts",
    automation_condition=publish_what_passed,
)
@plain_failures
def published_prompt(context: dg.AssetExecutionContext, store: Store, tuned_prompt: Inputs, evaluation: Inputs):
    """A version in the store with the alias `production`: what other jobs get with `PromptStore(url).get(name)`.

    It looks at the verdict itself, whatever let the run get here. Its value is a JSON text: name, version and digest.
    """
    from prompt_core.evaluation.report import REPORT, render_report

    def make(key: str) -> Made:
        where = f"published_prompt[{key}]"
        prompt, measured = _together(where, tuned_prompt[key], evaluation[key])
        if not measured.verdict.passed:
            what = "the gate did not pass: " + "; ".join(measured.verdict.reasons)
            raise PromptmillError(where, what, "Production stays as it is.")
        published, why = store.open(), "; ".join(measured.verdict.reasons)
        page = render_report(measured, prompt, _live_before(published, prompt))
        version = published.publish(prompt, measured.model_dump(mode="json"), why=why, pages={REPORT: page.encode()})
        who, compared = f"dagster run {context.run.run_id}", measured.production_digest
        published.promote(prompt.name, version, alias=PRODUCTION, who=who, why=why, instead_of=compared)
        value = json.dumps({"name": prompt.name, "version": version, "digest": prompt.digest})
        went_live = any(move.who == who for move in published.history(prompt.name, PRODUCTION))
        return Made(value, prompt.digest, publication_metadata(published, prompt, version, went_live))

    return each_task(context, make, tuned_prompt, evaluation)


@dg.asset(
    partitions_def=TASKS,
    backfill_policy=dg.BackfillPolicy.single_run(),
    group_name="prompts",
    kinds={"html"},
    owners=["team:promptmill"],
    code_version="1",
    io_manager_key="pages",
    automation_condition=report_everything,
)
@plain_failures
def report(context: dg.AssetExecutionContext, store: Store, pages: dg.ResourceParam[Texts], tuned_prompt: Inputs, evaluation: Inputs):
    """The HTML page of a prompt, passed or rejected: every contender, the verdict, mistakes, cost, lineage and what was live before."""
    from prompt_core.evaluation import render_report

    def make(key: str) -> Made:
        prompt, measured = _together(f"report[{key}]", tuned_prompt[key], evaluation[key])
        page = render_report(measured, prompt, _live_before(store.open(), prompt))
        digest = pages.digest(page)
        return Made(page, digest, report_metadata(measured, pages.place(context.asset_key, digest)))

    return each_task(context, make, tuned_prompt, evaluation)


def _together(where: str, prompt: "TunedPrompt", measured: Evaluation) -> tuple["TunedPrompt", Evaluation]:
    """A prompt and its evaluation.

    Raises:
        PromptmillError: the evaluation is another prompt's.
    """
    if measured.prompt_digest != prompt.digest:
        what = f"evaluation is of prompt {measured.prompt_digest[:12]}, tuned_prompt is {prompt.digest[:12]}"
        raise PromptmillError(where, what, "Materialize evaluation again.")
    return prompt, measured


def _live_before(store: PromptStore, prompt: "TunedPrompt") -> "TunedPrompt | None":
    """What was live before this prompt, whether that is live by now or not: a page does not depend on which step came first."""
    live = store.live(prompt.name)
    if live is None or live.digest != prompt.digest:
        return live
    before = store.history(prompt.name, PRODUCTION)[-1].before
    try:
        return store.get(prompt.name, before) if before else None
    except Unreachable:
        raise
    except PromptmillError:  # collected as garbage
        return None
