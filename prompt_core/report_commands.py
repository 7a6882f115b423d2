"""The commands that show what was measured: report, card and drift."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from prompt_core.errors import PromptmillError
from prompt_core.options import as_json, published_version, store_option

_output_option = click.option("--output", type=click.Path(path_type=Path), help="File to write; default: standard output.")


@click.command()
@click.argument("name")
@_output_option
@store_option
def report(name: str, output: Path | None, store_url: str) -> None:
    """The HTML report of NAME[@VERSION]: every contender, the verdict, mistakes, cost and lineage on one page.

    It is the page that was published with the version; where there is none, it is made from what was recorded.
    """
    from prompt_core import PromptStore
    from prompt_core.evaluation import render_report
    from prompt_core.evaluation.report import REPORT
    from prompt_core.store.contents import PAGES

    store, found = PromptStore(store_url), published_version(name, store_url)
    with store.checkout(found.prompt.name, found.version) as folder:
        kept = folder / PAGES / REPORT
        page = kept.read_text(encoding="utf-8") if kept.is_file() else None
    if page is None:
        if found.measured is None:
            what = "was published with an evaluation that this version of promptmill cannot read"
            raise PromptmillError(f"prompt {found.title}", what, "Evaluate it again.")
        page = render_report(found.measured, found.prompt, store.live(found.prompt.name))
    _write(page, output)


@click.command()
@click.argument("name")
@_output_option
@store_option
def card(name: str, output: Path | None, store_url: str) -> None:
    """The model card of NAME[@VERSION] in Markdown: what it does, on what, how well, and how to use it."""
    from prompt_core.export.card import model_card

    _write(model_card(published_version(name, store_url)), output)


@click.command()
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@store_option
@as_json
def drift(name: str, file: Path, store_url: str, as_json: bool) -> None:
    """How far the inputs of FILE (CSV, JSONL or Parquet) are from those that NAME[@VERSION] was tuned on.

    Lengths, vocabulary and, where the file has labels in the target or in a column `prediction`, their mix: predictions are
    compared with those of the evaluation. Ends with status 1
    where one of them has drifted beyond the task's drift.threshold.
    """
    from prompt_core.data.drift import drift as drift_of
    from prompt_core.data.read import read_inputs

    published = published_version(name, store_url)
    profile, task = published.prompt.manifest.data.profile, published.prompt.task
    if profile is None:
        what = "was tuned by an earlier version, which kept no profile of its examples"
        raise PromptmillError(f"prompt {published.title}", what, "Tune it again.")
    found = drift_of(profile, read_inputs(task, str(file), "FILE"), task, predicted=published.predicted)
    if as_json:
        click.echo(found.model_dump_json(indent=1))
    else:
        click.echo(found.table())
    if found.drifted:
        sys.exit(1)


def _write(text: str, output: Path | None) -> None:
    if output is None:
        click.echo(text, nl=not text.endswith("\n"))
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PromptmillError(str(output), f"cannot be written ({error.strerror})", "Name a file that you can write to.") from None


REPORT_COMMANDS = (report, card, drift)
