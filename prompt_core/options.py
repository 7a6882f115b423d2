"""Options and small answers that commands of the command line share."""

from __future__ import annotations

import os

import click

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
