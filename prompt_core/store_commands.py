"""The commands that look after a store of published prompts."""

from __future__ import annotations

import json
import sys

import click

from prompt_core.errors import PromptmillError
from prompt_core.options import as_json, current_user, store_option, why_option

_alias_option = click.option("--alias", default="production", show_default=True)


@click.command("list")
@store_option
@as_json
def list_(store_url: str, as_json: bool) -> None:
    """All published prompts with their versions and aliases."""
    from prompt_core import PromptStore

    store = PromptStore(store_url)
    summaries = store.list()
    if not summaries:
        store.check_exists()
    if as_json:
        click.echo(json.dumps([summary.model_dump(mode="json") for summary in summaries], indent=1))
        return
    for summary in summaries:
        aliases = ", ".join(f"{alias} -> {version}" for alias, version in sorted(summary.aliases.items()))
        versions = ", ".join(f"{version} (taken back)" if version in summary.taken_back else str(version) for version in summary.versions)
        click.echo(f"{summary.name}  versions {versions}  {aliases}".rstrip())
    if not summaries:
        click.echo(f"no prompt is published in {store_url}", err=True)


@click.command()
@click.argument("name")
@_alias_option
@click.option("--force", is_flag=True, help="Also a version that did not pass, was taken back or is older than the live one; needs --why.")
@why_option
@store_option
def promote(name: str, alias: str, force: bool, why: str, store_url: str) -> None:
    """Point an alias at NAME@VERSION.

    `production` takes a version that passed its evaluation and was not taken back by `rollback` or `withdraw`; any other only with
    --force and a reason, which the history keeps.
    """
    from prompt_core import PromptStore

    prompt, _, version = name.partition("@")
    if not version:
        raise PromptmillError("promote", f'"{name}" names no version', f"Write {prompt}@VERSION.")
    PromptStore(store_url).promote(prompt, version, alias, who=current_user(), why=why, force=force)
    click.echo(f"{alias} -> {name}", err=True)


@click.command()
@click.argument("name")
@_alias_option
@why_option
@store_option
def rollback(name: str, alias: str, why: str, store_url: str) -> None:
    """Point an alias of NAME back at the version it had before."""
    from prompt_core import PromptStore

    version = PromptStore(store_url).rollback(name, alias, who=current_user(), why=why)
    click.echo(f"{alias} -> {name}@{version}", err=True)


@click.command()
@click.argument("name")
@_alias_option
@why_option
@store_option
def withdraw(name: str, alias: str, why: str, store_url: str) -> None:
    """Take an alias of NAME away, so that nothing is served under it; needs --why.

    Its version comes back by `promote --force` alone. A newer one that passes goes live as usual.
    """
    from prompt_core import PromptStore

    PromptStore(store_url).withdraw(name, alias, who=current_user(), why=why)
    click.echo(f"{alias} -> nothing", err=True)


@click.command()
@click.argument("name")
@click.option("--alias", default=None, help="Only this alias; default: all.")
@store_option
@as_json
def history(name: str, alias: str | None, store_url: str, as_json: bool) -> None:
    """Every move of the aliases of NAME: when, from which version to which, by whom and why."""
    from prompt_core import PromptStore

    moves = PromptStore(store_url).history(name, alias)
    if as_json:
        click.echo(json.dumps([move.model_dump(mode="json") for move in moves], ensure_ascii=False, indent=1))
        return
    for move in moves:
        forced = "  FORCED" if move.forced else ""
        click.echo(
            f"{move.when}  {move.alias}  {move.before or '-'} -> {move.version or '-'}  {move.who or '-'}  {move.why}{forced}".rstrip()
        )


@click.command()
@click.argument("name", required=False)
@store_option
@as_json
def verify(name: str | None, store_url: str, as_json: bool) -> None:
    """Compare everything in the store, or all of NAME, with its digests.

    Ends with status 1 if anything is missing or was changed, and names it.
    """
    from prompt_core import PromptStore

    store = PromptStore(store_url)
    found = store.verify(name)
    if not found.prompts:
        store.check_exists()
    if as_json:
        click.echo(found.model_dump_json(indent=1))
    else:
        for problem in found.problems:
            click.echo(problem)
        click.echo(f"{found.prompts} prompts, {found.versions} versions, {found.bytes:,} bytes: {len(found.problems)} problems", err=True)
    if found.problems:
        sys.exit(1)


@click.command()
@click.argument("name", required=False)
@click.option("--keep", type=click.IntRange(min=0), default=5, show_default=True, help="Moves of each alias whose versions are kept.")
@click.option("--grace", type=click.FloatRange(min=0), default=24.0, show_default=True, help="Hours for which what is new is kept.")
@click.option("--delete", is_flag=True, help="Remove it; without this it is only shown.")
@why_option
@store_option
@as_json
def gc(name: str | None, keep: int, grace: float, delete: bool, why: str, store_url: str, as_json: bool) -> None:
    """Show, or with --delete remove, versions that no alias needs and what publishers left behind when they died.

    An alias needs the version it stands for (withdrawn: stood for last) and those of its last --keep moves. What was published or moved
    within --grace hours stays, so that this is safe while others publish.
    """
    from prompt_core import PromptStore

    store = PromptStore(store_url)
    found = store.gc(name, keep=keep, grace=grace * 3600, delete=delete, who=current_user(), why=why)
    if not found.bytes:
        store.check_exists()
    if as_json:
        click.echo(json.dumps({**found.model_dump(mode="json"), "bytes": found.bytes, "deleted": delete}, indent=1))
        return
    for version in found.versions:
        click.echo(f"{version.name}@{version.version}  {version.bytes:,} bytes")
    for leftover in found.leftovers:
        click.echo(f"{leftover.name}  unpublished {leftover.folder[:12]}  {leftover.bytes:,} bytes")
    for path in found.half_written:
        click.echo(f"half-written {path}")
    outcome = "removed" if delete else "would be removed; --delete removes it"
    click.echo(f"{len(found.versions)} versions, {found.bytes:,} bytes {outcome}", err=True)


STORE_COMMANDS = (list_, promote, rollback, withdraw, history, verify, gc)
