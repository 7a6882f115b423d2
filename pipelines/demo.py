"""What `make demo` runs: the asset graph of the two demo tasks, in this process, kept in the history that `make dev` shows."""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill, indent, shorten

import dagster as dg

from pipelines.partitions import find_task_files, register
from pipelines.progress import LoggedProgress
from pipelines.resources import RunLog
from pipelines.settings import REPOSITORY, Settings
from prompt_core import PromptmillError
from prompt_core.evaluation import Evaluation

TASKS = ("support_intent", "support_reply")
_INDENT = "    "


class TerminalProgress(RunLog):
    """The run's log, and a bar on the terminal, whose own descriptor is needed: Dagster redirects standard error inside a step."""

    descriptor: int

    @contextmanager
    def follow(self, context: dg.AssetExecutionContext) -> Iterator[LoggedProgress]:
        from prompt_core.progress import Progress

        with open(self.descriptor, "w", closefd=False) as terminal, Progress(context.partition_key, file=terminal) as bar:
            yield _Both(context.log.info, self.every_seconds, bar)


class _Both(LoggedProgress):
    def __init__(self, say, every_seconds, bar) -> None:
        super().__init__(say, every_seconds)
        self._bar = bar

    def step(self, step) -> None:
        super().step(step)
        self._bar.step(step)

    def fleet(self, prompts):
        logged, drawn = super().fleet(prompts), self._bar.fleet(prompts)

        def show(number, step) -> None:
            logged(number, step)
            if prompts > 1:  # one prompt is drawn by `step`
                drawn(number, step)

        return show

    def contender(self, name: str, done: int, total: int) -> None:
        super().contender(name, done, total)
        self._bar.contender(name, done, total)


def main(tasks: Sequence[str] = TASKS) -> int:
    """Materialize the tasks one after the other, print what came of it, and return the exit status."""
    prepare_home(Path(os.environ.get("DAGSTER_HOME") or REPOSITORY / ".promptmill" / "dagster"))
    from pipelines.definitions import build_defs  # reads DAGSTER_HOME

    settings = Settings.from_environment()
    retune = build_defs(settings, {"progress": TerminalProgress(descriptor=os.dup(2))}).resolve_job_def("retune")
    with dg.DagsterInstance.get() as instance:
        register(instance, find_task_files(settings.tasks_dir))
        for task in tasks:
            print(f"\n{task}: examples -> splits -> baselines, tuned_prompt -> evaluation -> published_prompt", flush=True)
            result = retune.execute_in_process(
                instance=instance,
                partition_key=task,
                raise_on_error=False,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )
            if not result.success:
                print(f"{task} was not published: {_reason(result)}", file=sys.stderr)
                return 1
            evaluation = result.output_for_node("evaluation")
            print(f"\n{evaluation.table()}\n")
            if result.output_for_node("tuned_prompt").task.objective == "generate":
                print(_side_by_side(evaluation))
            published = result.asset_materializations_for_node("published_prompt")[0].metadata
            print(f"published: {task}@{published['version'].value} as {published['alias'].value}, digest {published['digest'].value}")
    print("\nUse it anywhere:\n  from prompt_core import PromptStore")
    print(f'  PromptStore("{_from_here(settings.store_url)}").get("{tasks[0]}").predict(["..."])')
    return 0


def prepare_home(home: Path) -> None:
    """Make the folder with Dagster's settings and history, and name it to Dagster."""
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        shutil.copy(REPOSITORY / "deploy" / "dagster.yaml", home)
    os.environ["DAGSTER_HOME"] = str(home)


def _reason(result: dg.ExecuteInProcessResult) -> str:
    """The line that says why: of the gate, or of the innermost error of the step that failed."""
    for check in result.get_asset_check_evaluations():
        if check.blocking and not check.passed:
            said = "the gate did not pass" if check.check_name == "gate" else f"the check {check.check_name} failed"
            return f"{said}: {check.description}"
    error = next(event.step_failure_data.error for event in result.all_events if event.is_step_failure)
    while error.cause:
        error = error.cause
    return error.message.strip().removeprefix("dagster._core.definitions.events.Failure: ")


def _side_by_side(evaluation: Evaluation) -> str:
    """One test message and the answers to it; an untuned model may ramble, which is cut."""
    sample = evaluation.samples[0]
    inputs = [f"{name}\n{indent(text, _INDENT)}" for name, text in sample.input.items()]
    answers = {**sample.outputs, "what a person answered": sample.target}
    shown = [
        f"{name}\n{fill(shorten(text, 400), 110, initial_indent=_INDENT, subsequent_indent=_INDENT)}" for name, text in answers.items()
    ]
    return "\n".join((*inputs, *shown)) + "\n"


def _from_here(store_url: str) -> str:
    path = Path(store_url)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else store_url


if __name__ == "__main__":
    try:
        sys.exit(main())
    except PromptmillError as error:
        sys.exit(f"Error: {error}")
