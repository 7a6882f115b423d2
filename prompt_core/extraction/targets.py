"""The target column of an extraction task: every row checked and written in the canonical form."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import polars as pl

from prompt_core.errors import PromptmillError
from prompt_core.extraction.schema import RecordForm
from prompt_core.extraction.spans import entities_json, moved, parse_entities
from prompt_core.task import TaskSpec
from prompt_core.template import Template

if TYPE_CHECKING:  # data are read without a model
    from prompt_core.backbone import Backbone


def text_field(task: TaskSpec) -> str:
    """The template's one field, which entities are spans of.

    Raises:
        PromptmillError: it has several.
    """
    fields = Template(task).fields
    if len(fields) != 1:
        what = f"has the fields {', '.join(fields)}, and entities are spans of one text"
        raise PromptmillError(f"task {task.name}: template", what, "Use one field, or give extract.schema and a model that writes.")
    return fields[0]


def check_extraction(task: TaskSpec, backbone: Backbone) -> None:
    """Refuse a backbone that cannot give what an extraction task asks for.

    Raises:
        PromptmillError: a schema for an encoder or none for a model that writes, several fields or a slow tokenizer.
    """
    where, name = f"task {task.name}: extract", backbone.identity.name
    if task.writes and not backbone.generates:
        raise PromptmillError(
            f"{where}.schema", f"is given, but {name} is an encoder, which writes no JSON", "Remove it, or use a causal model."
        )
    if not task.writes and backbone.generates:
        raise PromptmillError(f"{where}.schema", f"is missing, and {name} writes its answer", "Give the JSON schema of the targets.")
    if task.tags and not backbone.tokenizer.is_fast:
        what = f"the tokenizer of {name} is a slow one, which does not say where its tokens stand"
        raise PromptmillError(where, what, "Use a model with a tokenizer.json.")
    if task.tags:
        text_field(task)


def canonical_targets(frame: pl.DataFrame, task: TaskSpec) -> pl.DataFrame:
    """Raw rows with the target as cleaned texts have it: the offsets of entities move with their text.

    Args:
        frame: the columns of `read_examples`; row 1 is the first example of the file.

    Raises:
        PromptmillError: a target is not what the task asks for; names the row and the reason.
    """
    target, schema = task.data.target, task.record_schema
    form = None if schema is None else RecordForm(schema)
    texts = frame[target if form else text_field(task)]
    written: list[str | None] = []
    for number, (text, value) in enumerate(zip(texts, frame[target], strict=True), 1):
        if not (text or "").strip() or not (value or "").strip():
            written.append(value)  # an empty row, which cleaning takes out
            continue
        try:
            written.append(form.canonical(unicodedata.normalize("NFC", value)) if form else _canonical_entities(text, value))
        except ValueError as error:
            where = f"task {task.name}: data.target"
            raise PromptmillError(where, f'row {number} of column "{target}" {error}', "Correct the row or remove it.") from None
    return frame.with_columns(pl.Series(target, written, dtype=pl.String))


def _canonical_entities(text: str, value: str) -> str:
    plain = unicodedata.normalize("NFC", text).strip()
    entities = moved(parse_entities(value, text), text, plain)
    if split := next((entity for entity in entities if entity.start >= entity.end), None):
        raise ValueError(f'parts a letter from its accent: two entities meet inside "{plain[split.start - 1 : split.start]}"')
    return entities_json(entities, plain)
