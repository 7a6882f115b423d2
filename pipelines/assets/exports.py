"""Publication: the only step that moves an alias of the store."""

import dagster as dg

from pipelines.automation import publish_what_passed
from pipelines.failures import plain_failures
from pipelines.metadata import publication_metadata
from pipelines.resources import Store
from prompt_core import PromptmillError
from prompt_core.evaluation import Evaluation


@dg.asset(
    group_name="prompts",
    kinds={"safetensors"},
    owners=["team:promptmill"],
    code_version="1",
    automation_condition=publish_what_passed,
)
@plain_failures
def published_prompt(
    context: dg.AssetExecutionContext,
    store: Store,
    tuned_prompt,  # TunedPrompt, whose import would load torch with the code location
    evaluation: Evaluation,
) -> dg.MaterializeResult:
    """A version in the store with the alias `production`: what other jobs get with `PromptStore(url).get(name)`.

    It looks at the verdict itself, whatever let the run get here.
    """
    if evaluation.prompt_digest != tuned_prompt.digest:
        what = f"evaluation is of prompt {evaluation.prompt_digest[:12]}, tuned_prompt is {tuned_prompt.digest[:12]}"
        raise PromptmillError(f"published_prompt[{tuned_prompt.name}]", what, "Materialize evaluation again.")
    if not evaluation.verdict.passed:
        what = "the gate did not pass: " + "; ".join(evaluation.verdict.reasons)
        raise PromptmillError(f"published_prompt[{tuned_prompt.name}]", what, "Production stays as it is.")
    prompts, why = store.open(), "; ".join(evaluation.verdict.reasons)
    version = prompts.publish(tuned_prompt, evaluation.model_dump(mode="json"), why=why)
    prompts.promote(tuned_prompt.name, version, alias="production", who=f"dagster run {context.run.run_id}", why=why)
    return dg.MaterializeResult(
        data_version=dg.DataVersion(tuned_prompt.digest), metadata=publication_metadata(prompts, tuned_prompt, version)
    )
