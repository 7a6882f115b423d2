"""A task: what to tune, from which data, on which model and when to publish it. `task_file` reads it from YAML."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator

from prompt_core.criteria import DriftSpec, EvaluateSpec, GateSpec, Metric
from prompt_core.deploy import Stack, check_beams, check_kind, kinds_for
from prompt_core.errors import PromptmillError
from prompt_core.methods import DistillSpec, ExtractSpec, PromptSpec, TuneSpec
from prompt_core.parts import Descriptions, Part, all_texts
from prompt_core.space import SearchSpec, check_space
from prompt_core.text.spec import TextSpec

Objective = Literal["classify", "generate", "extract", "distill"]
Role = Literal["system", "user", "assistant"]

LADDER_RUNGS = 3  # above text: deep and soft from it, deep from the task's own root
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]*")
_METRICS: dict[Objective, tuple[Metric, ...]] = {
    "classify": ("accuracy", "macro_f1"),
    "generate": ("chrf", "rouge_l", "bleu", "exact_match", "facts_kept", "valid_json"),
    "extract": ("entity_f1", "exact_match", "valid_json"),
    "distill": ("agreement", "chrf", "rouge_l", "bleu", "exact_match", "facts_kept"),
}


class BackboneSpec(Part):
    """The frozen model: an embedded name (`minilm`, `smollm2`), a hub id, a local folder or a `.gguf` file."""

    name: str = Field(min_length=1, description="embedded name, hub id, local folder or .gguf file")
    revision: str | None = Field(default=None, description="commit of a hub id; pin it, so that a rerun sees the same weights")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto: bfloat16 for causal models where the processor computes in it, else float32"
    )
    quantization: Literal["8bit", "4bit"] | None = Field(
        default=None, description="hold the weights in 8 or 4 bits, through bitsandbytes; a prompt then belongs to that base"
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="cpu, cuda or one GPU such as cuda:1; auto: a GPU where there is one",
    )
    device_map: Literal["auto", "balanced", "balanced_low_0", "sequential"] | None = Field(
        default=None, description="transformers' device_map, in place of device: spreads the layers of a large model over all GPUs"
    )

    @model_validator(mode="after")
    def _one_place(self) -> BackboneSpec:
        if self.device_map and self.device != "auto":
            raise ValueError(f"device {self.device!r} and device_map {self.device_map!r} exclude each other; drop one")
        return self


class DataSpec(Part):
    """Where the examples are and how they are divided. `distill` works without `target`, and with its own questions without `path`."""

    path: str = Field(default="", description="CSV, JSONL or Parquet; any URL polars scans; relative to the task file")
    target: str = Field(default="", description="column with the label or the text to generate")
    unlabelled: str | None = Field(
        default=None, description="more inputs, without labels, for tune.calibrate and tune.self_training; relative to the task file"
    )
    test_path: str | None = Field(default=None, description="a fixed test file; without it, test rows are split off by content hash")
    test: float = Field(default=0.3, ge=0.05, le=0.9, description="share of rows held out for the evaluation; not beside test_path")
    validation: float = Field(default=0.15, ge=0.0, le=0.5, description="share of rows that choose when to stop")
    near_duplicate: float = Field(
        default=0.9,
        gt=0.0,
        le=1.0,
        description="rows whose word 3-grams overlap by this Jaccard share count as one; 1 keeps all but equal ones",
    )


class TaskSpec(Part):
    """One task: data, frozen model, template, what is tuned, and the rule by which the result may go live."""

    name: str = Field(description="letters, digits, _ and -; the prompt's name in the store")
    description: str = Field(default="", description="one line for people")
    owner: str | None = Field(default=None, description="who answers for this prompt, an e-mail address or team:name")
    backbone: BackboneSpec
    data: DataSpec = DataSpec()
    objective: Objective
    template: str | tuple[dict[Role, str], ...] = Field(
        description="chat messages in the model's own format, or one string; Jinja, sandboxed; fields are columns of the data"
    )
    labels: Descriptions = Field(
        default_factory=dict,
        description="a description per label, or several: all that may stand for it, averaged; default: the label's name in words",
    )
    distill: DistillSpec | None = Field(default=None, description="for objective: distill")
    prompt: PromptSpec = PromptSpec()
    tune: TuneSpec = TuneSpec()
    text: TextSpec = TextSpec()
    extract: ExtractSpec = ExtractSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    gate: GateSpec = GateSpec()
    drift: DriftSpec = DriftSpec()
    deploy: tuple[Stack, ...] = Field(
        default=(), description="where the prompt must run: kinds that cannot run there are not tuned, and the gate tries its export"
    )
    schedule: Annotated[str, Field(description="cron line of the periodic retuning; UTC, or as PROMPTMILL_TIMEZONE says")] | None = None
    _folder: Path = PrivateAttr(default_factory=Path)
    _schema_files: dict[str, str] = PrivateAttr(default_factory=dict)

    def model_post_init(self, context: Any) -> None:
        """Keep where the task file lies, validated with `context={"folder": ...}`, and which files its schemas are read from."""
        self._folder = (context or {}).get("folder", Path())
        schemas = {"extract.schema": self.extract.json_schema, "evaluate.schema": self.evaluate.json_schema}
        self._schema_files = {field: schema for field, schema in schemas.items() if isinstance(schema, str)}

    @field_validator("backbone", mode="before")
    @classmethod
    def _name_is_enough(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not _NAME.fullmatch(value) or len(value) > 100:
            raise ValueError(f"{value!r} is not a plain name; use letters, digits, _ and - (at most 100), starting with a letter or digit")
        return value

    @field_validator("template")
    @classmethod
    def _one_role_per_message(cls, value: Any) -> Any:
        messages = () if isinstance(value, str) else value
        if not value or any(len(message) != 1 for message in messages):
            raise ValueError("the template is empty or a message has not exactly one role; write `- user: ...`")
        return value

    @field_validator("labels")
    @classmethod
    def _descriptions_differ(cls, value: Descriptions) -> Descriptions:
        owner: dict[str, str] = {}
        for label, described in value.items():
            for text in all_texts(described):
                if not text.strip():
                    raise ValueError(f"{label} has an empty description; write what stands for it, or leave it out")
                if text in owner:
                    raise ValueError(f'"{text}" stands for {owner[text]} and for {label}; give each text once')
                owner[text] = label
        return value

    @model_validator(mode="after")
    def _inputs_are_named(self) -> TaskSpec:
        if self.objective != "distill":
            if self.distill or self.prompt.start in ("context", "compaction"):
                what = "the part distill" if self.distill else f"start: {self.prompt.start}"
                raise ValueError(f"{what} is for objective: distill, which this is not ({self.objective})")
            self._require("data", *(() if self.data == DataSpec() else ("path",)), given=self.data.path)
            self._require("data", "target", given=self.data.target)
            return self
        self._require("distill", given=self.distill)
        assert self.distill is not None  # just required
        if bool(self.data.path) == bool(self.distill.questions):
            found = "both are given" if self.data.path else "neither is given"
            raise ValueError(f"the inputs come from data.path or are asked by the model itself, distill.questions; {found}")
        if self.distill.demonstrations:
            self._require("data", "target", given=self.data.target)
        return self

    def _require(self, *location: str, given: object) -> None:
        if not given:
            raise ValidationError.from_exception_data("TaskSpec", [{"type": "missing", "loc": location, "input": None}])

    @model_validator(mode="after")
    def _tuning_fits_objective(self) -> TaskSpec:
        asked = {f"tune.loss: {self.tune.loss}": self.tune.loss != "label_set", "tune.calibrate": self.tune.calibrate}
        asked["tune.self_training"] = self.tune.self_training > 0
        if self.objective != "classify" and (field := next((field for field, given in asked.items() if given), None)):
            raise ValueError(f"{field} is for objective 'classify', this task's is {self.objective!r}")
        if self.tune.self_training and not self.data.unlabelled:
            raise ValueError("tune.self_training needs inputs to label; name a file of them in data.unlabelled")
        return self

    @model_validator(mode="after")
    def _metrics_fit_objective(self) -> TaskSpec:
        fitting = _METRICS[self.objective]
        asked = (*self.evaluate.metrics, *([self.gate.metric] if self.gate.metric else []))
        for metric in asked:
            if metric not in fitting:
                raise ValueError(f"metric {metric!r} does not fit objective {self.objective!r}; it has {', '.join(fitting)}")
        if "facts_kept" in asked and not self.evaluate.states_facts:
            raise ValueError("metric 'facts_kept' needs evaluate.must_contain, the column with the facts, or evaluate.contains or omits")
        if self.objective == "generate" and ("valid_json" in asked) != (self.evaluate.json_schema is not None):
            raise ValueError("metric 'valid_json' and evaluate.schema go together; give both or neither")
        if self.extract.json_schema is not None and self.objective != "extract":
            raise ValueError(f"extract.schema is for objective: extract; this one is {self.objective}")
        if self.evaluate.beams > 1 and not self.writes:
            raise ValueError("evaluate.beams is for prompts that write texts; this one chooses among labels or finds entities")
        if self.evaluate.out_of_scope and self.objective != "classify":
            raise ValueError(f"evaluate.out_of_scope is for objective: classify; this one is {self.objective}")
        if self.gate.metric and self.gate.metric not in self.metrics:
            raise ValueError(f"gate.metric {self.gate.metric!r} is not among evaluate.metrics {list(self.metrics)}")
        return self

    @model_validator(mode="after")
    def _search_fits(self) -> TaskSpec:
        if self.search:
            check_space(self.search.space, {"prompt": PromptSpec, "tune": TuneSpec})
            if "decay" in self.tune.model_fields_set and self.tune.decay != "constant":
                what = f"{self.tune.decay} depends on the number of steps, which a search chooses"
                raise PromptmillError("tune.decay", what, "Leave it out.")
            if self.search.final == "average" and self.tune.self_training:
                raise ValueError("tune.self_training beside tune.search.final: average; the mean of the folds' prompts is not tuned again")
            starts = self.search.space.get("prompt.start", (self.prompt.start,))
            compacted = self.objective == "distill" and self.prompt.kind != "soft" and not {None, "compaction"}.isdisjoint(starts)
            if self.search.final == "average" and compacted:
                raise ValueError("tune.search.final: average beside prompt.start: compaction; starts of different lessons have no mean")
        return self

    @model_validator(mode="after")
    def _runs_where_it_must(self) -> TaskSpec:
        if self.evaluate.beams > 1:
            check_beams(self.deploy, "evaluate.beams")
        if self.prompt.kind != "auto":
            check_kind(self.prompt.kind, self.deploy, "prompt")
        elif not {"soft", "deep"} & set(kinds_for(self.deploy)):
            raise ValueError(f"no kind that a search chooses runs in all of deploy: {', '.join(self.deploy)}; take one out")
        return self

    @model_validator(mode="after")
    def _text_fits(self) -> TaskSpec:
        if self.climbs:
            self._ladder_fits()
            return self
        if self.prompt.kind != "text":
            if self.text != TextSpec():
                raise ValueError(f"the part text is for prompt.kind: text or auto; this one is {self.prompt.kind}")
            return self
        if self.objective == "distill":
            raise ValueError("prompt.kind: text is not for objective: distill, whose text is what is distilled; take soft or deep")
        ways = {"search": "text.rounds and text.together", "calibrate": "the search, which calibrates where that is better"}
        for name, way in (ways | {"self_training": "soft and deep prompts, which are tuned"}).items():
            if getattr(self.tune, name):
                raise ValueError(f"tune.{name} is not for prompt.kind: text; leave it to {way}")
        if self.tune.loss != "label_set":
            raise ValueError(f"tune.loss: {self.tune.loss} is not for prompt.kind: text, which nothing is trained for")
        return self

    def _ladder_fits(self) -> None:
        search, minutes = self.tune.search or SearchSpec(), self.text.minutes
        if self.objective == "distill":
            raise ValueError("the part text is not for objective: distill, whose text is what is distilled")
        if self.prompt.start or "prompt.start" in search.space:  # another start may show rows that a fold holds out
            given = f"prompt.start: {self.prompt.start}" if self.prompt.start else "tune.search.space: prompt.start"
            raise ValueError(f"{given} beside the part text; a search chooses between the text found and the root")
        if "retrieved" in self.text.choices:
            raise ValueError("text.choices: retrieved is for prompt.kind: text; a soft or deep prompt starts from the same words for all")
        if search.final == "average":
            raise ValueError("tune.search.final: average beside the part text; prompts of different texts have no mean")
        if min(search.trials, search.together) < LADDER_RUNGS:
            raise ValueError(f"tune.search.trials and together are at least {LADDER_RUNGS} beside the part text, to meet every rung")
        if minutes and search.minutes and minutes >= search.minutes:
            raise ValueError(f"text.minutes {minutes:g} leave nothing of tune.search.minutes {search.minutes:g}, which are for both")

    @property
    def climbs(self) -> bool:
        """Whether `prompt.kind: auto` begins with a text prompt: where the file has the part text, if only an empty one."""
        return self.prompt.kind == "auto" and "text" in self.model_fields_set

    @property
    def search(self) -> SearchSpec | None:
        """The search that chooses the settings, if one is asked for; `prompt.kind: auto` alone means all its defaults."""
        return self.tune.search or (SearchSpec() if self.prompt.kind == "auto" else None)

    @property
    def reads_unlabelled(self) -> bool:
        """Whether the tuning makes use of `data.unlabelled`, or some trial of its search does."""
        searched = self.tune.search is not None and "tune.calibrate" in self.tune.search.space
        return self.tune.calibrate or self.tune.self_training > 0 or searched

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics of the evaluation, the objective's usual ones where the file names none."""
        fitting = _METRICS[self.objective]
        usual = {"extract": 3 if self.extract.json_schema is not None else 2, "distill": 3 if self.data.target else 1}
        return self.evaluate.metrics or fitting[: usual.get(self.objective, 2)]

    @property
    def gate_metric(self) -> Metric:
        """The metric that decides."""
        return self.gate.metric or self.metrics[0]

    @property
    def record_schema(self) -> dict[str, Any] | None:
        """The JSON schema of the targets, read from its file; None where targets are no JSON records."""
        schema = self.extract.json_schema
        assert not isinstance(schema, str)  # `parse_task` has read the file
        return schema

    @property
    def writes(self) -> bool:
        """Whether the answer is a text that the model writes, rather than a label or tags."""
        return self.objective in ("generate", "distill") or self.record_schema is not None

    def longest_answer(self, targets: Iterable[int]) -> int:
        """Tokens after which a text that is written ends at the latest: a quarter more than the longest training target has.

        The file may say otherwise, and of a distilled prompt the teacher's answers do.

        Args:
            targets: tokens of each training target; not looked at where something else decides.
        """
        if self.evaluate.max_new_tokens:
            return self.evaluate.max_new_tokens
        return self.distill.answer_tokens if self.distill else -(-5 * max(targets) // 4)

    @property
    def tags(self) -> bool:
        """Whether the answer is entities, by a tag for each token."""
        return self.objective == "extract" and not self.writes

    @property
    def folder(self) -> Path:
        """The task file's folder, from which relative paths start."""
        return self._folder

    @property
    def schema_files(self) -> dict[str, str]:
        """The files that its schemas were read from, as the task file names them, by field."""
        return self._schema_files

    def without_places(self, backbone: str) -> dict[str, Any]:
        """The task as plain data, without what says where and when it ran; `backbone` is the model's public name."""
        places = {"data": {"path", "test_path", "unlabelled"}, "backbone": {"device", "device_map"}, "drift": {"inputs"}, "schedule": True}
        content = self.model_dump(mode="json", exclude=places)  # type: ignore[arg-type]  # the type of a literal knows no mixture
        content["data"]["path"] = "-" if self.data.path else ""
        if self.data.test_path:
            content["data"]["test_path"] = "-"  # it tells how test rows were held out
        if self.tune.self_training:
            content["data"]["unlabelled"] = "-"  # it needs some
        del content["tune"]["checkpoint_every"]
        if self.prompt.start_from:
            content["prompt"]["start_from"] = "-"
        if self.distill and self.distill.context:
            content["distill"]["context"] = "-"  # the manifest has its digest
        if self.text.endpoint:
            content["text"]["endpoint"]["url"] = "-"
        content["backbone"]["name"] = backbone
        return content

    def locate(self, path: str) -> str:
        """`path` as it can be opened: URLs and absolute paths as they are, others from the task file's folder."""
        return path if "://" in path or Path(path).is_absolute() else str(self._folder / path)
