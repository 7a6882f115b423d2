"""Commands that use published prompts: one input, a table, and over HTTP."""

from __future__ import annotations

import json
import os
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
    answered goes to OUTPUT.rejected.jsonl with its number and the reason; if all do, the command ends with status 2.
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
    if done.rejected_path and not done.rows:
        with done.rejected_path.open(encoding="utf-8") as file:
            first = json.loads(file.readline())
        what = f"has all {done.rejected} rows of {input}, none was answered; row {first['row']}: {first['reason'].removesuffix('.')}"
        raise PromptmillError(str(done.rejected_path), what)
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


@click.command()
@click.argument("names", nargs=-1)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--queue", type=click.IntRange(1), default=512, show_default=True, help="Inputs that may wait or be answered; more get 503.")
@click.option("--max-body", type=click.IntRange(1), default=2**20, show_default=True, help="Bytes of a request; more get 413.")
@click.option("--refresh", type=click.FloatRange(0.05), default=2.0, show_default=True, help="Seconds between looks at the aliases.")
@store_option
def serve(names: tuple[str, ...], host: str, port: int, queue: int, max_body: int, refresh: float, store_url: str) -> None:
    """Serve the prompts NAMES, or all of the store, over HTTP: a playground at /, OpenAI's routes and /v1/predict.

    Prompts on one frozen model share its passes. When an alias moves, the next request gets the new version and no request
    is lost. With PROMPTMILL_TOKEN set, clients must send it as a bearer token.
    """
    try:
        import uvicorn

        from prompt_core.serving import Limits, create_app
    except ModuleNotFoundError as error:
        raise PromptmillError("serve", f"needs the package {error.name}", "Install promptmill[serve].") from None
    from prompt_core.store import PromptStore

    token = os.environ.get("PROMPTMILL_TOKEN") or None
    if token is None and host not in ("127.0.0.1", "localhost", "::1"):
        click.echo(f"{host} may be reached by others and PROMPTMILL_TOKEN is not set: anybody can use the prompts", err=True)
    limits = Limits(unfinished=queue, body_bytes=max_body)
    app = create_app(PromptStore(store_url), names, token=token, limits=limits, refresh_seconds=refresh)
    try:
        uvicorn.run(app, host=host, port=port)
    except SystemExit:
        raise getattr(app.state, "refused", None) or SystemExit(1) from None


USE_COMMANDS = [predict, try_, serve]
