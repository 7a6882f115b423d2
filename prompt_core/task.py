"""The task file: one page of YAML that says what to tune, from which data, on which model and when to publish it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from prompt_core.criteria import DriftSpec, EvaluateSpec, GateSpec, Metric
from prompt_core.errors import PromptmillError, nearest
from prompt_core.extraction.schema import checked_schema, read_schema
from prompt_core.parts import Part
from prompt_core.plain_yaml import read_yaml, shown
from prompt_core.space import SearchSpec, check_space
from prompt_core.text.spec import TextSpec

Objective = Literal["classify", "generate", "extract", "distill"]
Start = Literal["root", "text", "labels", "demonstrations", "vocabulary", "random", "zero", "prompt", "context"]
Role = Literal["system", "user", "assistant"]

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
    unlabelled: str | None = Field(default=None, description="more inputs, without labels, for tune.calibrate; relative to the task file")
    test_path: str | None = Field(default=None, description="a fixed test file; without it, test rows are split off by content hash")
    test: float = Field(default=0.3, ge=0.05, le=0.9, description="share of rows held out for the evaluation")
    validation: float = Field(default=0.15, ge=0.0, le=0.5, description="share of rows that choose when to stop")
    near_duplicate: float = Field(
        default=0.9,
        gt=0.0,
        le=1.0,
        description="rows whose word 3-grams overlap by this Jaccard share count as one; 1 keeps all but equal ones",
    )


class PromptSpec(Part):
    """What is tuned."""

    kind: Literal["soft", "deep", "text", "auto"] = Field(
        default="deep",
        description="soft: input embeddings; deep: keys and values in every layer; text: words, searched as the part text says; auto: "
        "soft or deep and what else the file leaves open is chosen by a search, see tune.search",
    )
    tokens: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="length of the prompt; default: that of what it starts from, or 16; a template with soft(n) says it itself",
    )
    start: Start | None = Field(
        default=None,
        description="root: the text before the first field; text: prompt.text; labels: the labels' words; demonstrations: the root and "
        "solved examples; vocabulary: words drawn at random; random: numbers at the model's own scale; zero (deep only); prompt: "
        "prompt.start_from; context: the first tokens of what is distilled. Default: context (distill), root where there is one, else "
        "vocabulary (models that write) or random (encoders)",
    )
    text: str | None = Field(default=None, min_length=1, description="for start: text")
    start_from: str | None = Field(default=None, description="for start: prompt, the folder of a tuned prompt; relative to the task file")
    demonstrations: int = Field(default=4, ge=1, le=256, description="for start: demonstrations, how many training examples")
    network: Literal["none", "mlp", "lstm"] = Field(
        default="none", description="a network that produces the prompt while it is tuned: P-tuning (soft) or prefix tuning's MLP (deep)"
    )
    hidden: int = Field(default=256, ge=1, le=65536, description="width of that network")
    sink: bool = Field(default=False, description="leave the first token of a deep prompt as it starts")

    @model_validator(mode="after")
    def _parts_fit(self) -> PromptSpec:
        given = {"text": self.text, "prompt": self.start_from}
        for start, value in given.items():
            if (self.start == start) != (value is not None):
                field = "text" if start == "text" else "start_from"
                raise ValueError(f"start: {start} and the field {field} go together; give both or neither")
        if self.kind == "soft" and (self.start == "zero" or self.sink):
            raise ValueError(f"{'sink' if self.sink else 'start: zero'} is for kind: deep; a soft prompt has no keys and values")
        if self.kind == "text" and (other := next((n for n in type(self).model_fields if n != "kind" and _is_given(self, n)), None)):
            raise ValueError(f"{other} is not for kind: text, which is words; the part text says how they are searched")
        if self.kind == "deep" and self.network == "lstm":
            raise ValueError("network: lstm is for kind: soft; a deep prompt takes mlp")
        return self


class DistillSpec(Part):
    """What the teacher reads, what it is asked and what of its answers is kept."""

    context: str | None = Field(
        default=None, min_length=1, description="text file that stands before the system text; relative to the task file"
    )
    demonstrations: int = Field(default=0, ge=0, le=256, description="solved training examples that stand in front, as earlier turns")
    questions: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="questions that the model asks itself about the context; 0: the inputs are those of data.path",
    )
    chunk_tokens: int = Field(default=48, ge=16, le=8192, description="of the context, what the model sees when it asks itself a question")
    question_temperature: float = Field(default=0.5, gt=0.0, le=5.0, description="of the sampling of those questions")
    answers: int = Field(default=1, ge=1, le=64, description="answers of the teacher per training input; more than one need a temperature")
    temperature: float = Field(default=0.0, ge=0.0, le=5.0, description="of the sampling of answers to train on; 0: the most likely one")
    answer_tokens: int = Field(default=128, ge=1, le=8192, description="where an answer ends at the latest")
    top_k: int = Field(
        default=32, ge=1, le=1024, description="next tokens whose likelihoods are kept one by one; the rest is kept as a sum"
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> DistillSpec:
        if not self.context and not self.demonstrations:
            raise ValueError("there is nothing to distil; give context, a text file, or demonstrations, a number")
        if self.questions and not self.context:
            raise ValueError("questions are asked about a context; give one, or take the inputs from data.path")
        if self.answers > 1 and not self.temperature:
            raise ValueError(f"{self.answers} answers at temperature 0 are one answer; raise temperature")
        return self


class TuneSpec(Part):
    """How the prompt is tuned. The defaults suit a few hundred examples."""

    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="the only source of randomness")
    steps: int = Field(default=80, ge=1, le=1_000_000, description="optimizer steps at most")
    batch_examples: int = Field(default=16, ge=1, le=65536, description="examples per step")
    batch_tokens: int = Field(default=8192, ge=16, description="tokens per forward pass; a batch over this budget is accumulated")
    gradient_checkpointing: bool = Field(default=False, description="compute layers again in the backward pass: slower, far less memory")
    learning_rate: float = Field(default=1e-2, gt=0.0, le=10.0)
    weight_decay: float = Field(default=0.0, ge=0.0, le=10.0, description="pulls the prompt back to where it started")
    warmup: float = Field(default=0.1, ge=0.0, le=1.0, description="share of the steps with a rising rate")
    decay: Literal["cosine", "linear", "constant"] = Field(default="cosine", description="what the rate does after its rise")
    clip: float = Field(default=1.0, gt=0.0, description="largest gradient norm")
    average: float = Field(default=0.9, ge=0.0, lt=1.0, description="decay per step of the running average that is validated and kept")
    validate_every: int = Field(default=10, ge=1, description="steps between two looks at the validation loss")
    patience: int = Field(default=4, ge=1, description="looks without a better validation loss before stopping")
    checkpoint_every: int = Field(default=20, ge=1, description="steps between two states that an interrupted run goes on from")
    loss: Literal["label_set", "vocabulary", "pairs", "supervised_contrastive"] = Field(
        default="label_set",
        description="for classify. label_set: cross-entropy over the labels' scores; vocabulary: over the vocabulary, of the right "
        "label's tokens (causal models); pairs: squared error of each pair's cosine, supervised_contrastive: of each text against the "
        "others of its batch (encoders; a head is fitted at the end)",
    )
    head: Literal["means", "logistic"] | None = Field(
        default=None, description="after pairs and supervised_contrastive: the class means (default), or a logistic regression"
    )
    head_c: float = Field(default=10.0, gt=0.0, description="scikit-learn's C of the logistic head: the inverse of its penalty")
    calibrate: bool = Field(
        default=False, description="subtract each label's mean log-probability over the inputs; for labels of about equal frequency"
    )
    anchor_scale: float = Field(
        default=10.0, gt=0.0, description="factor on cosines: of text and label anchor, and in supervised_contrastive (encoders)"
    )
    label_score: Literal["mean", "sum"] = Field(
        default="mean", description="a label's score is the mean or the sum of its tokens' log-likelihoods (causal models)"
    )
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    max_tokens: int = Field(default=512, ge=8, le=131072, description="longest example; a longer input is cut, never its target")
    truncate: Literal["end", "start"] = Field(default="end", description="which side of the fields' text a long input loses")
    search: Annotated[
        SearchSpec | None,
        BeforeValidator(lambda value: {} if value == "auto" else value, json_schema_input_type=Literal["auto"] | SearchSpec | None),
    ] = Field(default=None, description="choose settings by cross-validation; auto: with all defaults; left out: no search")

    @property
    def contrastive(self) -> bool:
        """Whether the loss compares examples with each other, so that a head is fitted afterwards."""
        return self.loss in ("pairs", "supervised_contrastive")

    @model_validator(mode="after")
    def _loss_fits(self) -> TuneSpec:
        if self.head and not self.contrastive:
            raise ValueError(f"head: {self.head} follows loss: pairs or supervised_contrastive; with {self.loss} there is none")
        if self.contrastive and self.label_smoothing:
            raise ValueError(f"label_smoothing does not apply to loss: {self.loss}; drop one")
        if self.contrastive and self.batch_examples < 4:
            raise ValueError(f"batch_examples {self.batch_examples} leaves loss: {self.loss} too few pairs; give at least 4")
        return self


class ExtractSpec(Part):
    """What `objective: extract` reads out of a text. Without a schema: entities, with an encoder."""

    model_config = ConfigDict(serialize_by_alias=True)

    json_schema: str | dict[str, Any] | None = Field(
        default=None,
        alias="schema",
        description="JSON schema of a target, for a model that writes: the schema itself, or a JSON file relative to the task file",
    )

    @field_validator("json_schema", mode="before")
    @classmethod
    def _is_schema(cls, value: Any) -> Any:
        return value if value is None or isinstance(value, str) else checked_schema(value)


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
    labels: dict[str, str] = Field(default_factory=dict, description="a description per label; default: the label's name in words")
    distill: DistillSpec | None = Field(default=None, description="for objective: distill")
    prompt: PromptSpec = PromptSpec()
    tune: TuneSpec = TuneSpec()
    text: TextSpec = TextSpec()
    extract: ExtractSpec = ExtractSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    gate: GateSpec = GateSpec()
    drift: DriftSpec = DriftSpec()
    schedule: Annotated[str, Field(description="cron line of the periodic retuning")] | None = None
    _folder: Path = PrivateAttr(default_factory=Path)

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

    @model_validator(mode="after")
    def _inputs_are_named(self) -> TaskSpec:
        if self.objective != "distill":
            if self.distill or self.prompt.start == "context":
                what = "the part distill" if self.distill else "start: context"
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
        if self.objective != "classify" and (self.tune.loss != "label_set" or self.tune.calibrate):
            field = "tune.calibrate" if self.tune.calibrate else f"tune.loss: {self.tune.loss}"
            raise ValueError(f"{field} is for objective 'classify', this task's is {self.objective!r}")
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
        return self

    @model_validator(mode="after")
    def _text_fits(self) -> TaskSpec:
        if self.prompt.kind != "text":
            if self.text != TextSpec() and self.prompt.kind != "auto":
                raise ValueError(f"the part text is for prompt.kind: text; this one is {self.prompt.kind}")
            return self
        if self.objective == "distill":
            raise ValueError("prompt.kind: text is not for objective: distill, whose text is what is distilled; take soft or deep")
        for name, way in (("search", "text.rounds and text.together"), ("calibrate", "the search, which calibrates where that is better")):
            if getattr(self.tune, name):
                raise ValueError(f"tune.{name} is not for prompt.kind: text; leave it to {way}")
        if self.tune.loss != "label_set":
            raise ValueError(f"tune.loss: {self.tune.loss} is not for prompt.kind: text, which nothing is trained for")
        return self

    @property
    def search(self) -> SearchSpec | None:
        """The search that chooses the settings, if one is asked for; `prompt.kind: auto` alone means all its defaults."""
        return self.tune.search or (SearchSpec() if self.prompt.kind == "auto" else None)

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

    @property
    def tags(self) -> bool:
        """Whether the answer is entities, by a tag for each token."""
        return self.objective == "extract" and not self.writes

    @property
    def folder(self) -> Path:
        """The task file's folder, from which relative paths start."""
        return self._folder

    def without_places(self, backbone: str) -> dict[str, Any]:
        """The task as plain data, without what says where and when it ran; `backbone` is the model's public name."""
        places = {"data": {"path", "test_path", "unlabelled"}, "backbone": {"device", "device_map"}, "drift": {"inputs"}, "schedule": True}
        content = self.model_dump(mode="json", exclude=places)  # type: ignore[arg-type]  # the type of a literal knows no mixture
        content["data"]["path"] = "-" if self.data.path else ""
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


def _is_given(part: Part, name: str) -> bool:
    """Whether a field has another value than its default."""
    return bool(getattr(part, name) != type(part).model_fields[name].default)


def load_task(path: str | Path) -> TaskSpec:
    """Read a task file.

    Raises:
        PromptmillError: the file is missing, is not YAML, or has an unknown, missing or unfit field; the message names
            file, field, value and the way out.
    """
    path = Path(path)
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise PromptmillError(str(path), "there is no such task file", nearest(path.name, beside)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PromptmillError(str(path), f"cannot be read ({error})", "A task file is UTF-8 text.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date like 2026-13-45 is a ValueError of its own
        raise PromptmillError(str(path), f"is not YAML ({' '.join(str(error).split())[:500]})", "See the example in README.md.") from None
    if not isinstance(content, dict):
        raise PromptmillError(str(path), f"holds {type(content).__name__}, not fields", "Start with `name: ...`.")
    return parse_task(content, str(path), path.parent)


def parse_task(content: dict[str, Any], where: str, folder: Path) -> TaskSpec:
    """A task from the fields of a file; `where` names it in errors, `folder` is what relative paths start from.

    Raises:
        PromptmillError: as `load_task`.
    """
    try:
        task = TaskSpec.model_validate(content)
    except ValidationError as error:
        raise _explained(error, where) from None
    task._folder = folder
    for name in ("extract", "evaluate"):
        part: ExtractSpec | EvaluateSpec = getattr(task, name)
        if isinstance(path := part.json_schema, str):
            schema = read_schema(Path(task.locate(path)), f"{where}: {name}.schema")
            task = task.model_copy(update={name: part.model_copy(update={"json_schema": schema})})
    return task


def _explained(error: ValidationError, where: str) -> PromptmillError:
    """The first finding of a validation as one line that names the field and the way out."""
    finding = error.errors()[0]
    location = [" ".join(str(part).split())[:100] for part in finding["loc"]]
    field = ".".join(location) or "the file"
    if finding["type"] == "extra_forbidden":
        model: type[BaseModel] = TaskSpec
        for part in location[:-1]:
            model = (_model_in(model.model_fields[part].annotation) if part in model.model_fields else None) or model
        known = [field.alias or name for name, field in model.model_fields.items()]
        return PromptmillError(f"{where}: {field}", "unknown field", nearest(location[-1], known))
    if finding["type"] == "missing":
        return PromptmillError(f"{where}: {field}", "is missing", "Add it; `promptmill schema` describes every field.")
    if isinstance(own := finding.get("ctx", {}).get("error"), PromptmillError):
        return PromptmillError(f"{where}: {own.where}", own.what, own.fix)
    message = " ".join(finding["msg"].removeprefix("Value error, ").split())[:500]
    found = "" if finding["type"] == "value_error" else f" (found {shown(finding['input'])})"
    return PromptmillError(f"{where}: {field}", message + found, "`promptmill schema` describes every field.")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The first part of a task file that a type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
