"""What a caller gives a prompt to answer, as mappings of field to text; or one line that says which input cannot be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import polars as pl

from prompt_core.errors import PromptmillError
from prompt_core.field_text import as_text, is_absent

Input: TypeAlias = str | Mapping[str, Any]
Inputs: TypeAlias = Iterable[Input] | pl.DataFrame


def as_list(inputs: Inputs) -> list[Input]:
    """Inputs one by one: those of any iterable, read once, or the rows of a polars DataFrame.

    Raises:
        PromptmillError: a text or mapping alone, which is made of letters or keys; or what has no inputs in it.
    """
    if isinstance(inputs, pl.DataFrame):
        return list(inputs.iter_rows(named=True))
    if isinstance(inputs, str | bytes | Mapping):
        raise PromptmillError("inputs", f"are {_kind(inputs)} alone", "Put it in a list.")
    if hasattr(inputs, "iterrows"):  # pandas, whose frames are iterables of column names
        raise PromptmillError("inputs", f"are {_kind(inputs)}, which gives its column names", 'Give frame.to_dict("records").')
    if not isinstance(inputs, Iterable):
        raise PromptmillError("inputs", f"are {_kind(inputs)}", "Give a list of texts or of mappings with the template's fields.")
    return list(inputs)


def as_fields(inputs: Iterable[Input], fields: Sequence[str]) -> list[dict[str, Any]]:
    """Inputs as `read_input` reads them.

    Raises:
        PromptmillError: as `read_input`, with the number of the input.
    """
    return [read_input(given, fields, f"input {number}") for number, given in enumerate(inputs, 1)]


def read_input(given: Input, fields: Sequence[str], where: str = "input") -> dict[str, Any]:
    """An input as a mapping whose `fields` are texts as data are tuned on and evaluated, see `as_text`; None where one is absent.

    Args:
        given: a mapping, or a text that stands for the one field of the template.
        fields: of the template.
        where: names the input in errors.

    Raises:
        PromptmillError: neither text nor mapping, a text where the template has several fields, or a field that is no text.
    """
    if not isinstance(given, str | Mapping):
        fix = "Give a text." if len(fields) == 1 else "Give a mapping of field to text."
        raise PromptmillError(where, f"is {_kind(given)}, not a text or a mapping of field to text", fix)
    if isinstance(given, str) and len(fields) != 1:
        raise PromptmillError(where, f"is a text, but the template has the fields {', '.join(fields)}", "Give a mapping of field to text.")
    row: dict[str, Any] = {fields[0]: given} if isinstance(given, str) else dict(given)
    for name in fields:
        if name in row:
            try:
                row[name] = None if is_absent(row[name]) else as_text(row[name])
            except ValueError as error:
                raise PromptmillError(f'{where}: field "{name}"', str(error), "Give it a text.") from None
    return row


def _kind(given: object) -> str:
    """What was given, as a sentence names it."""
    return "None" if given is None else f"of type {type(given).__name__}"
