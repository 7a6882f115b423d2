"""What leaves the pipeline: the published version, and the page that people read. Only publication moves an alias of the store."""

import json

import dagster as dg

from pipelines.automation import publish_what_passed
from pipelines.batch import Inputs, Made, each_task
from pipelines.failures import plain_failures
from pipelines.metadata import publication_metadata
from pipelines.partitions import TASKS
from pipelines.resources import Store
from prompt_core import PromptmillError


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

    def make(key: str) -> Made:
        prompt, measured = tuned_prompt[key], evaluation[key]
        where = f"published_prompt[{key}]"
        if measured.prompt_digest != prompt.digest:
            what = f"evaluation is of prompt {measured.prompt_digest[:12]}, tuned_prompt is {prompt.digest[:12]}"
            raise PromptmillError(where, what, "Materialize evaluation again.")
        if not measured.verdict.passed:
            what = "the gate did not pass: " + "; ".join(measured.verdict.reasons)
            raise PromptmillError(where, what, "Production stays as it is.")
        published, why = store.open(), "; ".join(measured.verdict.reasons)
        version = published.publish(prompt, measured.model_dump(mode="json"), why=why)
        published.promote(prompt.name, version, alias="production", who=f"dagster run {context.run.run_id}", why=why)
        value = json.dumps({"name": prompt.name, "version": version, "digest": prompt.digest})
        return Made(value, prompt.digest, publication_metadata(published, prompt, version))

    return each_task(context, make, tuned_prompt, evaluation)
