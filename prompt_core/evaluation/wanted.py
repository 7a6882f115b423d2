"""What an output is measured against besides its target: more right texts, facts that it must state, patterns, a schema."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prompt_core.criteria import compiled
from prompt_core.extraction.schema import RecordForm
from prompt_core.task import TaskSpec

Texts: TypeAlias = Sequence[str]


@dataclass(frozen=True)
class Wanted:
    """What is known of the right outputs of all rows.

    Attributes:
        references: per row all right texts, the target first where there is one; empty where the target is the only one.
        facts: per row, lines of `key: value`; a line without a colon is a value.
        contains, omits: what every output must and must not contain, see `criteria.compiled`.
        form: of every output, where that has to be JSON.
    """

    references: Sequence[Texts] = ()
    facts: Texts | None = None
    contains: Texts = ()
    omits: Texts = ()
    form: RecordForm | None = None


def asked_once(task: TaskSpec, test: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, list[str]] | None]:
    """The test rows, of what writes each input once; and by `_id` all the answers that the data has to it."""
    if task.objective not in ("generate", "distill"):
        return test, None
    target = task.data.target
    alike = dict(test.group_by("_id", maintain_order=True).agg(target).rows()) if target else None
    return test.unique("_id", keep="first", maintain_order=True), alike


def wanted_of(task: TaskSpec, rows: Sequence[Mapping[str, Any]], alike: Mapping[str, Texts] | None = None) -> Wanted:
    """What a task wants of its rows.

    Args:
        rows: with the columns of the data.
        alike: by `_id`, the targets of all rows with the same input: each is a right answer to it.
    """
    spec, target = task.evaluate, task.data.target
    references = []
    if spec.references or alike:
        for row in rows:
            own = alike[row["_id"]] if alike else [row[target]] if target else []
            references.append([text for text in dict.fromkeys([*own, *(row[column] for column in spec.references)]) if text])
    return Wanted(
        references=references,
        facts=[str(row[spec.must_contain] or "") for row in rows] if spec.must_contain else None,
        contains=spec.contains,
        omits=spec.omits,
        form=RecordForm(spec.json_schema) if isinstance(spec.json_schema, dict) else None,
    )


def facts_kept(predictions: Texts, facts: Texts | None, contains: Texts = (), omits: Texts = ()) -> NDArray[np.float64]:
    """Share of what was asked that each prediction does, float64 [N], in points: facts stated, patterns contained, patterns left out.

    Case and the amount of whitespace do not count in facts. A number is not found inside a longer one, or behind a minus: `4` is not in
    `14`, `4.50` or `-4`. A row of which nothing is asked has lost nothing: 100.

    Args:
        facts, contains, omits: as of `Wanted`.
    """
    required, forbidden = [list(map(compiled, patterns)) for patterns in (contains, omits)]
    scores = []
    for prediction, stated in zip(predictions, facts if facts is not None else [""] * len(predictions), strict=True):
        text = _folded(prediction)
        met = [_occurs(value, text) for value in _values(stated)]
        met += [pattern.search(prediction) is not None for pattern in required]
        met += [pattern.search(prediction) is None for pattern in forbidden]
        scores.append(100.0 * sum(met) / len(met) if met else 100.0)
    return np.array(scores)


def _values(facts: str) -> list[str]:
    parts = (line.partition(":") for line in facts.splitlines())
    return [value for key, colon, rest in parts if (value := _folded(rest if colon else key))]


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _occurs(value: str, text: str) -> bool:
    before = r"(?<!\d)(?<!\d[.,])(?<!(?<!\w)[-−])" if value[0].isdigit() else ""
    after = r"(?![.,]?\d)" if value[-1].isdigit() else ""
    return re.search(before + re.escape(value) + after, text) is not None
