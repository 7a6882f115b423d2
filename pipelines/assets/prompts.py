"""The tuned prompt, and the knobs that a run may turn."""

import time
from pathlib import Path

import dagster as dg
from pydantic import Field

from pipelines.failures import plain_failures
from pipelines.metadata import tuning_metadata
from pipelines.resources import Checkpoints, RunLog, TaskFolder
from prompt_core import TaskSpec
from prompt_core.data import Splits
from prompt_core.task import parse_task


class TuneConfig(dg.Config):
    """Knobs for one run. What is left out is as the task file says; lasting changes belong there."""

    kind: str | None = Field(
        None, description="soft: input embeddings; deep: keys and values in every layer; text: words; auto: chosen by a search"
    )
    tokens: int | None = Field(None, description="length of the prompt")
    steps: int | None = Field(None, description="optimizer steps at most")
    batch_examples: int | None = Field(None, description="examples per step")
    learning_rate: float | None = Field(None, description="peak rate of AdamW")
    validate_every: int | None = Field(None, description="steps between two looks at the validation loss")
    patience: int | None = Field(None, description="looks without a better validation loss before stopping")
    seed: int | None = Field(None, description="the only source of randomness; 0 is a seed")

    def applied_to(self, task: TaskSpec) -> TaskSpec:
        """The task with these knobs turned.

        Raises:
            PromptmillError: a value that a task file could not have either.
        """
        given = self.model_dump(exclude_none=True)
        prompt = {knob: given.pop(knob) for knob in ("kind", "tokens") if knob in given}
        content = task.model_dump(mode="json", exclude_unset=True)  # what the file leaves open stays open to a search
        content["prompt"] = content.get("prompt", {}) | prompt
        content["tune"] = content.get("tune", {}) | given
        return parse_task(content, f"run config of tuned_prompt[{task.name}]", task.folder)


@dg.asset(
    group_name="prompts",
    kinds={"pytorch", "huggingface"},
    owners=["team:promptmill"],
    code_version="1",
    io_manager_key="prompts",
    pool="gpu",  # one at a time for each accelerator: see deploy/dagster.yaml
)
@plain_failures
def tuned_prompt(
    context: dg.AssetExecutionContext, config: TuneConfig, tasks: TaskFolder, progress: RunLog, checkpoints: Checkpoints, splits: Splits
):
    """The prompt of the frozen model, tuned on the train rows and chosen on the validation rows. The test rows are left alone.
    Where the task file asks for a search, its settings are chosen first, on train and validation rows together; a text prompt
    is searched on these as a whole."""
    from prompt_core import tune  # torch loads here, not with the code location

    task = config.applied_to(tasks.load(context.partition_key))
    began = time.monotonic()
    with progress.follow(context) as shown:
        callbacks = {"on_step": shown.step, "on_search": shown.search, "on_round": shown.round}
        prompt = tune(task, splits.train, splits.validation, **callbacks, checkpoints=Path(checkpoints.folder))
    seconds = time.monotonic() - began
    return dg.MaterializeResult(value=prompt, data_version=dg.DataVersion(prompt.digest), metadata=tuning_metadata(prompt, seconds))
