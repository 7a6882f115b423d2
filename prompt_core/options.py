"""Options and small answers that commands of the command line share."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:  # torch is imported by the commands that need it
    from prompt_core.export import Published

as_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
store_option = click.option(
    "--store",
    "store_url",
    envvar="PROMPTMILL_STORE",
    default=".promptmill/store",
    show_default=True,
    help="Folder or URL of the prompt store (or PROMPTMILL_STORE).",
)
why_option = click.option("--why", default="", help="Kept in the history.")


def current_user() -> str:
    """Who is recorded for what the command line does."""
    return os.environ.get("USER") or os.environ.get("LOGNAME") or "unknown"


def published_version(given: str, store_url: str) -> Published:
    """The version that `name`, `name@3` or `name@alias` means, with the evaluation that let it through."""
    from prompt_core.export import Published
    from prompt_core.store import PromptStore

    store = PromptStore(store_url)
    name, _, version = given.partition("@")
    number = store.resolve(name, version or "production")
    return Published(store.get(name, number), number, store.record(name, number).evaluation)
