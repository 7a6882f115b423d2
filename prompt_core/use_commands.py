"""Commands that use published prompts: one input, a table, and over HTTP."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prompt_core.errors import PromptmillError, nearest
from prompt_core.options import as_json, published, store_option

if TYPE_CHECKING:  # torch and polars are imported by the commands that need them: `--help` answers at once
    from prompt_core.artifact import TunedPrompt


@click.command()
@click.argument("name")
@click.argument("input", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--prompt-column", metavar="COLUMN", help="Names a prompt per row; an empty cell stands for NAME, or for none if NAME is -.")
@click.option("--part-rows", type=click.IntRange(1), default=2048, show_default=True, help="Rows of a part, which a killed run may lose.")
@store_option
@as_json
def predict(name: str, input: Path, output: Path, prompt_column: str | None, part_rows: int, store_url: str, as_json: bool) -> None:
    """Run NAME[@VERSION] over INPUT (CSV, JSONL or Parquet) and write OUTPUT: all columns and the prediction.

    Tables of any size take the same memory. A run that was killed goes on when it is started again. A row that cannot be
    answered goes to OUTPUT.rejected.jsonl with its number and the reason.
    """
    from prompt_core.batch import predict_table
    from prompt_core.progress import Progress
    from prompt_core.shelf import Shelf
    from prompt_core.store import PromptStore

    given = None if name == "-" and prompt_column else name
    with Progress(name if given else "many prompts") as progress:
        done = predict_table(Shelf(PromptStore(store_url)), given, input, output, prompt_column, part_rows, progress.rows)
    if as_json:
        click.echo(json.dumps({"rows": done.rows, "rejected": done.rejected, "found": done.found}))
    click.echo(f"{done.rows} rows -> {output}" + (f" ({done.found} found finished)" if done.found else ""), err=True)
    if done.rejected_path:
        click.echo(f"{done.rejected} rows rejected -> {done.rejected_path}", err=True)


@click.command("try")
@click.argument("name")
@click.argument("text")
@click.option("--field", "fields", multiple=True, metavar="NAME=TEXT", help="Another field of the template; repeatable.")
@store_option
@as_json
def try_(name: str, text: str, fields: tuple[str, ...], store_url: str, as_json: bool) -> None:
    """The frozen model's answer to TEXT without and with the prompt NAME[@VERSION], side by side.

    TEXT is the template's first field; lines after its first one fill the fields after it, and what is still
    missing is asked for on a terminal.
    """
    from prompt_core.evaluation.sidebyside import side_by_side

    version, prompt = published(name, store_url)
    answers = side_by_side(prompt, _fields(prompt, text, fields))
    if as_json:
        click.echo(json.dumps({"prompt": f"{prompt.name}@{version}", **answers}, ensure_ascii=False, indent=1))
        return
    for title, answer in (("without the prompt", answers["without"]), (f"with {prompt.name}@{version}", answers["with"])):
        click.echo(click.style(title, bold=True) + f"\n{answer}\n")


def _fields(prompt: TunedPrompt, text: str, options: tuple[str, ...]) -> dict[str, str]:
    from prompt_core.template import Template

    names = Template(prompt.task).fields
    given: dict[str, str] = {}
    for option in options:
        field, found, value = option.partition("=")
        if not found or field not in names:
            raise PromptmillError("--field", f'"{option}" sets no field of the template', nearest(field, names))
        given[field] = value
    open_fields = [name for name in names if name not in given]
    parts = text.split("\n", len(open_fields) - 1) if open_fields else []
    given |= dict(zip(open_fields, parts, strict=False))
    for name in (name for name in names if name not in given):
        if not sys.stdin.isatty():
            raise PromptmillError(f"prompt {prompt.name}", f'its template also needs the field "{name}"', f'Add --field {name}="..."')
        given[name] = click.prompt(name)
    return given


USE_COMMANDS = [predict, try_]
