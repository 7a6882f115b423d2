"""The task file: one page of YAML that says what to tune, from which data, on which model and when to publish it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator

from prompt_core.errors import PromptmillError, nearest

Objective = Literal["classify", "generate"]
Start = Literal["root", "text", "labels", "demonstrations", "vocabulary", "random", "zero", "prompt"]
Role = Literal["system", "user", "assistant"]
Metric = Literal["accuracy", "macro_f1", "chrf", "rouge_l", "bleu", "exact_match", "facts_kept"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-]*")


class Part(BaseModel):
    """Base of every part of a task file: frozen, and strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
    """Where the labelled examples are and how they are divided."""

    path: str = Field(min_length=1, description="CSV, JSONL or Parquet; any URL polars scans; relative to the task file")
    target: str = Field(min_length=1, description="column with the label or the text to generate")
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

    kind: Literal["soft", "deep"] = Field(default="deep", description="soft: input embeddings; deep: keys and values in every layer")
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
        "prompt.start_from. Default: root where there is one, else vocabulary (models that write) or random (encoders)",
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
        if self.kind == "deep" and self.network == "lstm":
            raise ValueError("network: lstm is for kind: soft; a deep prompt takes mlp")
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


class EvaluateSpec(Part):
    """What the evaluation measures."""

    metrics: tuple[Metric, ...] = Field(default=(), description="default: accuracy and macro_f1, or chrf and rouge_l")
    must_contain: str | None = Field(
        default=None, description="column of `key: value` lines whose values an output must contain: the metric facts_kept"
    )
    few_shot: int = Field(default=3, ge=0, le=64, description="demonstrations in the few-shot baseline of a model that writes")
    max_new_tokens: int | None = Field(default=None, ge=1, le=8192, description="default: a quarter more than the longest training target")


class GateSpec(Part):
    """When a prompt may go live."""

    metric: Metric | None = Field(default=None, description="default: the first metric of the evaluation")
    min_gain: float = Field(default=0.0, ge=0.0, description="least gain over the untuned baselines, in points of the metric (0 to 100)")
    alpha: float = Field(default=0.01, gt=0.0, lt=0.5, description="level of the paired tests")


class TaskSpec(Part):
    """One task: data, frozen model, template, what is tuned, and the rule by which the result may go live."""

    name: str = Field(description="letters, digits, _ and -; the prompt's name in the store")
    description: str = Field(default="", description="one line for people")
    owner: str | None = Field(default=None, description="who answers for this prompt, an e-mail address or team:name")
    backbone: BackboneSpec
    data: DataSpec
    objective: Objective
    template: str | tuple[dict[Role, str], ...] = Field(
        description="chat messages in the model's own format, or one string; Jinja, sandboxed; fields are columns of the data"
    )
    labels: dict[str, str] = Field(default_factory=dict, description="a description per label; default: the label's name in words")
    prompt: PromptSpec = PromptSpec()
    tune: TuneSpec = TuneSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    gate: GateSpec = GateSpec()
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
    def _tuning_fits_objective(self) -> TaskSpec:
        if self.objective != "classify" and (self.tune.loss != "label_set" or self.tune.calibrate):
            field = "tune.calibrate" if self.tune.calibrate else f"tune.loss: {self.tune.loss}"
            raise ValueError(f"{field} is for objective 'classify', this task's is {self.objective!r}")
        return self

    @model_validator(mode="after")
    def _metrics_fit_objective(self) -> TaskSpec:
        fitting = ("accuracy", "macro_f1") if self.objective == "classify" else ("chrf", "rouge_l", "bleu", "exact_match", "facts_kept")
        asked = (*self.evaluate.metrics, *([self.gate.metric] if self.gate.metric else []))
        for metric in asked:
            if metric not in fitting:
                raise ValueError(f"metric {metric!r} does not fit objective {self.objective!r}; it has {', '.join(fitting)}")
        if "facts_kept" in asked and not self.evaluate.must_contain:
            raise ValueError("metric 'facts_kept' needs evaluate.must_contain, the column with the facts")
        if self.gate.metric and self.gate.metric not in self.metrics:
            raise ValueError(f"gate.metric {self.gate.metric!r} is not among evaluate.metrics {list(self.metrics)}")
        return self

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics of the evaluation, the objective's usual ones where the file names none."""
        usual: tuple[Metric, ...] = ("accuracy", "macro_f1") if self.objective == "classify" else ("chrf", "rouge_l")
        return self.evaluate.metrics or usual

    @property
    def gate_metric(self) -> Metric:
        """The metric that decides."""
        return self.gate.metric or self.metrics[0]

    @property
    def folder(self) -> Path:
        """The task file's folder, from which relative paths start."""
        return self._folder

    def without_places(self, backbone: str) -> dict[str, Any]:
        """The task as plain data, without what says where and when it ran; `backbone` is the model's public name."""
        content = self.model_dump(
            mode="json", exclude={"data": {"path", "test_path", "unlabelled"}, "backbone": {"device", "device_map"}, "schedule": True}
        )
        content["data"]["path"] = "-"
        del content["tune"]["checkpoint_every"]
        if self.prompt.start_from:
            content["prompt"]["start_from"] = "-"
        content["backbone"]["name"] = backbone
        return content

    def locate(self, path: str) -> str:
        """`path` as it can be opened: URLs and absolute paths as they are, others from the task file's folder."""
        return path if "://" in path or Path(path).is_absolute() else str(self._folder / path)


def load_task(path: str | Path) -> TaskSpec:
    """Read a task file.

    Raises:
        PromptmillError: the file is missing, is not YAML, or has an unknown, missing or unfit field; the message names
            file, field, value and the way out.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise PromptmillError(str(path), "there is no such task file", nearest(path.name, beside)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PromptmillError(str(path), f"cannot be read ({error})", "A task file is UTF-8 text.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date like 2026-13-45 is a ValueError of its own
        raise PromptmillError(str(path), f"is not YAML ({' '.join(str(error).split())})", "See the example in README.md.") from None
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
    return task


def _explained(error: ValidationError, where: str) -> PromptmillError:
    """The first finding of a validation as one line that names the field and the way out."""
    finding = error.errors()[0]
    location = [str(part) for part in finding["loc"]]
    field = ".".join(location) or "the file"
    if finding["type"] == "extra_forbidden":
        model: type[BaseModel] = TaskSpec
        for part in location[:-1]:
            annotation = model.model_fields[part].annotation if part in model.model_fields else None
            model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else model
        return PromptmillError(f"{where}: {field}", "unknown field", nearest(location[-1], model.model_fields))
    if finding["type"] == "missing":
        return PromptmillError(f"{where}: {field}", "is missing", "Add it; `promptmill schema` describes every field.")
    message = finding["msg"].removeprefix("Value error, ")
    found = "" if finding["type"] == "value_error" else f" (found {finding['input']!r})"
    return PromptmillError(f"{where}: {field}", message + found, "`promptmill schema` describes every field.")
