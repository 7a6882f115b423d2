"""What a prompt is judged by: the parts `evaluate`, `gate` and `drift` of a task file."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, field_validator

from prompt_core.extraction.schema import checked_schema
from prompt_core.parts import Part

Metric = Literal["accuracy", "macro_f1", "chrf", "rouge_l", "bleu", "exact_match", "facts_kept", "entity_f1", "valid_json", "agreement"]


_WITH_FLAGS = re.compile(r"/(.+)/[gmsu]*i[gmsu]*")  # an expression as other languages write it


def _compiles(pattern: str) -> str:
    if not pattern.strip("/").strip():
        raise ValueError("a pattern is empty; write a text, or an expression as /.../")
    if other := _WITH_FLAGS.fullmatch(pattern):
        raise ValueError(f"{pattern!r} would be looked for as it stands; write an expression whose case does not count as /(?i){other[1]}/")
    try:
        compiled(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression ({error})") from None
    return pattern


def compiled(pattern: str) -> re.Pattern[str]:
    """A text that is looked for as it stands whatever its case, or between slashes a regular expression."""
    if len(pattern) > 2 and pattern[0] == pattern[-1] == "/":
        return re.compile(pattern[1:-1])
    return re.compile(re.escape(pattern), re.IGNORECASE)


Pattern = Annotated[str, AfterValidator(_compiles)]


class EvaluateSpec(Part):
    """What the evaluation measures."""

    model_config = ConfigDict(serialize_by_alias=True)

    metrics: tuple[Metric, ...] = Field(
        default=(), description="default: the first two that fit the objective; with extract.schema all three"
    )
    references: tuple[str, ...] = Field(default=(), description="columns with more right texts: for bleu, chrf, rouge_l and exact_match")
    must_contain: str | None = Field(
        default=None, description="column of `key: value` lines whose values an output must contain: the metric facts_kept"
    )
    contains: tuple[Pattern, ...] = Field(
        default=(), description="texts, or regular expressions between slashes, that every output must contain: the metric facts_kept"
    )
    omits: tuple[Pattern, ...] = Field(default=(), description="texts or /expressions/ that no output may contain: the metric facts_kept")
    json_schema: str | dict[str, Any] | None = Field(
        default=None,
        alias="schema",
        description="JSON schema of every generated text, for the metric valid_json: itself, or a JSON file relative to the task file",
    )
    slices: tuple[str, ...] = Field(default=(), description="columns of the data by whose values the results are shown apart")
    out_of_scope: str | None = Field(
        default=None, description="label of inputs that belong to no other: how well the scores tell them apart is measured (AUROC)"
    )
    few_shot: int = Field(default=3, ge=0, le=64, description="demonstrations in the few-shot baseline of a model that writes")
    max_new_tokens: int | None = Field(default=None, ge=1, le=8192, description="default: a quarter more than the longest training target")
    beams: int = Field(
        default=1,
        ge=1,
        le=16,
        description="beginnings of a text that are followed at once (beam search), wherever the prompt writes; each takes a row of the "
        "batch. 1: the likeliest token after token",
    )

    @field_validator("json_schema", mode="before")
    @classmethod
    def _is_schema(cls, value: Any) -> Any:
        return value if value is None or isinstance(value, str) else checked_schema(value)

    @property
    def columns(self) -> dict[str, str]:
        """The columns of the data that the evaluation reads, each with the field that names it."""
        facts = {self.must_contain: "evaluate.must_contain"} if self.must_contain else {}
        return dict.fromkeys(self.slices, "evaluate.slices") | dict.fromkeys(self.references, "evaluate.references") | facts

    @property
    def states_facts(self) -> bool:
        """Whether it says what an output must contain or omit."""
        return bool(self.must_contain or self.contains or self.omits)


class GateSpec(Part):
    """When a prompt may go live."""

    metric: Metric | None = Field(default=None, description="default: the first metric of the evaluation")
    min_gain: float = Field(default=0.0, ge=0.0, description="least gain over the untuned baselines, in points of the metric (0 to 100)")
    alpha: float = Field(default=0.01, gt=0.0, lt=0.5, description="level of the paired tests")
    max_class_loss: float | None = Field(
        default=20.0,
        ge=0.0,
        le=100.0,
        description="most recall, in points, that a class may be shown to lose against what is in production; null: any",
    )
    max_ms_per_row: float | None = Field(
        default=None, gt=0.0, description="milliseconds per test row at most, measured on the machine of the evaluation"
    )
    max_tokens: int | None = Field(default=None, ge=1, description="length of the prompt at most, in tokens")


class DriftSpec(Part):
    """When new inputs count as other than those that the prompt was tuned on."""

    threshold: float = Field(
        default=0.25,
        gt=0.0,
        description="population stability index of input lengths, vocabulary or label mix from which data counts as drifted",
    )
    inputs: str | None = Field(
        default=None,
        description="what users send now, a CSV, JSONL or Parquet file such as `promptmill predict` writes, relative to the task file; "
        "a pipeline that sees it drift tunes again",
    )
