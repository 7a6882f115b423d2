"""The command line. Every command is a few lines over the library; a user's mistake is one line and exit status 2."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from prompt_core.errors import PromptmillError, nearest
from prompt_core.options import as_json, current_user, published, published_version, store_option, why_option
from prompt_core.report_commands import REPORT_COMMANDS
from prompt_core.store_commands import STORE_COMMANDS
from prompt_core.use_commands import USE_COMMANDS

if TYPE_CHECKING:  # torch, polars and pydantic are imported by the commands that need them: `--help` answers at once
    from prompt_core.artifact import TunedPrompt
    from prompt_core.data import CleaningReport, Splits
    from prompt_core.task import TaskSpec

_PROMPTS = ".promptmill/prompts"
_CHECKPOINTS = ".promptmill/checkpoints"
_TASK_FILES = (".yaml", ".yml")


class _Commands(click.Group):
    """Turns the library's one exception for user mistakes into one line and exit status 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PromptmillError as error:
            click.echo(f"Error: {' '.join(str(error).split())}", err=True)
            ctx.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="promptmill")
def main() -> None:
    """Tune the prompt of a frozen language model, prove it on held-out data, publish it, use it."""


@main.command()
@click.argument("tasks", nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write, for one task; default: .promptmill/prompts/NAME-DIGEST.")
@as_json
def tune(tasks: tuple[str, ...], out: Path | None, as_json: bool) -> None:
    """Tune the prompts of TASKS: task files, or names of tasks in the folder PROMPTMILL_TASKS, else tasks/.

    Several on one backbone are tuned side by side, which is faster than one after another. One that fails or whose file is
    broken is named at the end, with exit status 2, and keeps none of the others from being written. A run that was interrupted goes on
    from its last checkpoint when it is started again. Under torchrun the processes share every batch.
    """
    if out and len(tasks) > 1:
        raise PromptmillError("--out", f"names one folder for {len(tasks)} tasks", "Leave it out.")
    failures: list[PromptmillError] = []
    specs = _readable(tasks, failures)  # before torch is imported: a typing mistake is answered at once
    if not specs:
        _raise_all(failures)
    if out and out.exists():
        raise PromptmillError(str(out), "exists already", "Name a folder that does not.")
    _check_place(out or Path(_PROMPTS) / specs[0].name)
    from prompt_core.evaluation import power_sentence
    from prompt_core.progress import Progress, said_first
    from prompt_core.tuning import tune_fleet
    from prompt_core.tuning.parallel import process_group

    summaries: list[dict[str, Any]] = []
    with process_group() as writes:
        prepared = _prepared(specs, failures)
        for backbone in dict.fromkeys(spec.backbone for spec, _, _ in prepared):
            together = [(spec, splits, report) for spec, splits, report in prepared if spec.backbone == backbone]
            fleet, sides = [spec for spec, _, _ in together], [(splits.train, splits.validation) for _, splits, _ in together]
            with Progress(fleet[0].name if len(fleet) == 1 else f"{len(fleet)} tasks") as progress:
                first = [
                    f"{spec.name}: {sentence}"
                    for spec, splits, report in together
                    for sentence in (report.sentence(), power_sentence(spec, splits.test["_id"].n_unique()))
                    if sentence
                ]
                on_step = progress.fleet(len(fleet))
                callbacks: dict[str, Any] = {"on_step": on_step, "on_search": progress.search, "on_round": progress.round}
                shown: dict[str, Any] = said_first("\n".join(first), callbacks) if writes else {}
                results = tune_fleet(fleet, sides, **shown, checkpoints=Path(_CHECKPOINTS))
            failures += [result for result in results if isinstance(result, PromptmillError)]
            for prompt, (_, _, report) in zip(results, together, strict=True) if writes else []:
                if isinstance(prompt, PromptmillError):
                    continue
                folder = out or Path(_PROMPTS) / f"{prompt.name}-{prompt.digest[:12]}"
                if not folder.exists():
                    prompt.save(folder)
                cleaning = {"cleaning": report.counts} if as_json else {}
                summaries.append({"folder": str(folder), **_summary(prompt), **cleaning})
    if summaries and as_json:
        click.echo(json.dumps(summaries[0] if len(tasks) == 1 else summaries, ensure_ascii=False, indent=1))
    elif summaries:
        click.echo("\n\n".join(_table(summary) for summary in summaries))
    if failures:
        _raise_all(failures)


@main.command()
@click.argument("task")
@click.argument("prompt", type=click.Path(path_type=Path))
@click.option("--publish", is_flag=True, help="Publish the prompt and make it `production` if the gate passes.")
@click.option("--force", is_flag=True, help="With --publish: if the gate does not pass, publish it as `candidate`; needs --why.")
@why_option
@store_option
@as_json
def evaluate(task: str, prompt: Path, publish: bool, force: bool, why: str, store_url: str, as_json: bool) -> None:
    """Measure PROMPT, a folder that `tune` wrote, on the test rows of TASK beside every baseline.

    Ends with status 1 if the gate does not pass.
    """
    spec = _task(task)
    if force and not (publish and why.strip()):
        raise PromptmillError("--force", "stands without --publish or without a reason", "Add --publish and --why TEXT.")
    from prompt_core import PromptStore, TunedPrompt
    from prompt_core import evaluate as evaluate_prompt
    from prompt_core.data import prepare
    from prompt_core.evaluation import render_report
    from prompt_core.evaluation.report import REPORT
    from prompt_core.progress import Progress

    tuned, store = TunedPrompt.load(prompt), PromptStore(store_url)
    splits, cleaning = prepare(spec)
    if sentence := cleaning.sentence():
        click.echo(f"{spec.name}: {sentence}", err=True)
    if (live := store.live(spec.name)) is None:
        try:
            store.check_exists()
        except PromptmillError as error:  # a mistake, or the first evaluation of all
            click.echo(f"{spec.name}: nothing live to compare with, {error}", err=True)
    with Progress(spec.name) as progress:
        evaluation = evaluate_prompt(spec, tuned, splits, production=live, on_progress=progress.contender)
    if as_json:
        content = {**json.loads(evaluation.model_dump_json()), "cleaning": cleaning.counts}
        click.echo(json.dumps(content, ensure_ascii=False, indent=1))
    else:
        click.echo(evaluation.table())
    good = evaluation.verdict.passed
    if publish and (good or force):
        why, alias = why or "promptmill evaluate --publish", "production" if good else "candidate"
        pages = {REPORT: render_report(evaluation, tuned, live).encode()}
        version = store.publish(tuned, evaluation.model_dump(mode="json"), who=current_user(), why=why, force=force, pages=pages)
        compared = evaluation.production_digest if good else ...
        store.promote(spec.name, version, alias, who=current_user(), why=why, instead_of=compared)
        click.echo(f"published {spec.name}@{version} as {alias}", err=True)
    if not good:
        sys.exit(1)


@main.command()
@click.argument("name")
@store_option
@as_json
def show(name: str, store_url: str, as_json: bool) -> None:
    """What NAME[@VERSION] is: manifest, digest, evaluation; of a text prompt what it says, of a ladder its rungs."""
    from prompt_core import PromptStore

    version, prompt = published(name, store_url)
    record = PromptStore(store_url).record(prompt.name, version)
    if as_json:
        content = {"version": version, "digest": prompt.digest, "manifest": prompt.manifest.model_dump(mode="json")}
        click.echo(json.dumps({**content, "record": record.model_dump(mode="json")}, ensure_ascii=False, indent=1))
        return
    click.echo(_table({"version": version, "published": record.published, **_summary(prompt)}))
    if prompt.manifest.text:
        click.echo("\n" + prompt.manifest.text.page(prompt.task) + "\n")
    if prompt.manifest.ladder:
        click.echo("\n" + prompt.manifest.ladder.markdown(prompt.seconds) + "\n")
    if record.forced:
        click.echo(f"  - published by force: {record.why}")
    for reason in record.evaluation.get("verdict", {}).get("reasons", ()):
        click.echo(f"  - {reason}")


@main.command()
@click.argument("names", nargs=-1, required=True)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--format", "form", default="folder", show_default=True, help="folder, tokens, peft, vllm, kv, tgis or text.")
@click.option("--gguf", is_flag=True, help="tokens: write the base's GGUF file with the prompts in it, for llama.cpp.")
@click.option("--layers", help="tokens --gguf: keep (default) the layers as they are, or f32.")
@click.option("--peft-type", help="peft: prompt_tuning, prefix_tuning or cartridge; default: as the prompt is.")
@store_option
def export(names: tuple[str, ...], folder: Path, form: str, gguf: bool, layers: str | None, peft_type: str | None, store_url: str) -> None:
    """Write NAMES, each NAME[@VERSION], to FOLDER in the form that another stack reads.

    folder: safetensors and JSON for promptmill itself. tokens: the base model with soft prompts as tokens, several in one
    file, for transformers, vLLM, SGLang and llama.cpp. peft: a PEFT adapter. vllm: prompt_embeds and a client. kv: keys
    and values for transformers' generate. tgis: a prefix for IBM's text-generation-inference. text: a text prompt as JSON of
    chat messages, for any model, and for LangChain, MLflow, DSPy and Ollama. What a form cannot express is refused with the reason.
    """
    from prompt_core.export import export as write

    write([published_version(name, store_url) for name in names], folder, form, gguf=gguf, layers=layers, peft_type=peft_type)
    click.echo(f"{', '.join(names)} -> {folder}", err=True)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def init(folder: Path) -> None:
    """Make FOLDER a new deployment: a task with data, settings, and the Dagster code location. `dagster dev` works in it at once."""
    from prompt_core.deployment import create_deployment

    create_deployment(folder)
    click.echo(f"{folder} is ready:\n  cd {shlex.quote(str(folder))}\n  dagster dev", err=True)


@main.command()
def schema() -> None:
    """The JSON schema of a task file, for editors and validation."""
    from prompt_core.task import TaskSpec

    click.echo(json.dumps(TaskSpec.model_json_schema(), indent=1))


def _task(given: str) -> TaskSpec:
    """The task of a file, or of a name in the folder of tasks, where the pipeline looks too."""
    from prompt_core import load_task

    folder = Path(os.environ.get("PROMPTMILL_TASKS") or "tasks")
    if Path(given).exists() or Path(given).name != given or Path(given).suffix in _TASK_FILES:
        return load_task(given)
    at_hand = [path for ending in _TASK_FILES if (path := folder / f"{given}{ending}").is_file()]
    for path in at_hand:  # of thousands of tasks the others are not read
        if _name_in(path) in (None, given):
            return load_task(path)
    others = sorted((path for path in folder.glob("*") if path.suffix in _TASK_FILES and path.is_file()), reverse=True)
    named = {_name_in(path) or path.stem: path for path in others}
    if found := named.get(given) or next(iter(at_hand), None):
        return load_task(found)
    raise PromptmillError(str(folder), f'there is no task "{given}"', nearest(given, named) or "Name a task file.")


def _name_in(path: Path) -> str | None:
    """The name that a task file says; None where it says none that can be read."""
    from prompt_core.task_file import field_on_its_line

    with suppress(OSError):
        name = field_on_its_line(path.read_text(encoding="utf-8-sig", errors="replace"), "name")
        return name if isinstance(name, str) else None
    return None


def _readable(tasks: Sequence[str], failures: list[PromptmillError]) -> list[TaskSpec]:
    """The tasks whose files can be read; what is wrong with the others is added to `failures`."""
    specs = []
    for given in tasks:
        try:
            specs.append(_task(given))
        except PromptmillError as error:
            failures.append(error)
    return specs


def _raise_all(failures: Sequence[PromptmillError]) -> NoReturn:
    """Name every failure: all but the last here, the last as any other mistake."""
    for failure in failures[:-1]:
        click.echo(f"Error: {' '.join(str(failure).split())}", err=True)
    raise failures[-1]


def _prepared(specs: Sequence[TaskSpec], failures: list[PromptmillError]) -> list[tuple[TaskSpec, Splits, CleaningReport]]:
    """The tasks whose data can be used, each with its splits and what was removed; what is wrong with the others is added to `failures`."""
    from prompt_core.data import prepare

    prepared = []
    for spec in specs:
        try:
            prepared.append((spec, *prepare(spec)))
        except PromptmillError as error:
            failures.append(error)
    return prepared


def _check_place(folder: Path) -> None:
    """Refuse a folder that could not be made, before hours of work are spent."""
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise PromptmillError(str(folder), f"cannot be written, {above} is no folder that you can write to", "Name another place.")


def _summary(prompt: TunedPrompt) -> dict[str, Any]:
    manifest = prompt.manifest
    entities = manifest.entities
    counts = {"entities": f"{entities.found}, {entities.rounded} of them widened to whole tokens, {entities.lost} lost"} if entities else {}
    return {
        "name": prompt.name,
        "digest": prompt.digest,
        "kind": f"{manifest.kind}, {manifest.tokens} tokens",
        "parameters": manifest.parameters,
        "bytes": prompt.num_bytes,
        "backbone": manifest.backbone.name,
        **({"steps": f"{manifest.tuning.kept_step} kept of {manifest.tuning.steps}"} if manifest.tuning else {}),
        **({"self-training": manifest.self_training.summary()} if manifest.self_training else {}),
        **({"search": search.summary()} if (search := manifest.search or manifest.text_search) else {}),
        **({"ladder": manifest.ladder.summary()} if manifest.ladder else {}),
        **counts,
    }


def _table(content: dict[str, Any]) -> str:
    width = max(map(len, content))
    return "\n".join(f"{key:<{width}}  {value}" for key, value in content.items())


for command in (*STORE_COMMANDS, *USE_COMMANDS, *REPORT_COMMANDS):
    main.add_command(command)
