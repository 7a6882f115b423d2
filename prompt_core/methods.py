"""How a prompt is made: the parts `prompt`, `distill`, `tune` and `extract` of a task file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from prompt_core.extraction.schema import checked_schema
from prompt_core.parts import Part
from prompt_core.space import SearchSpec

Start = Literal["root", "text", "labels", "demonstrations", "vocabulary", "random", "zero", "prompt", "context", "compaction"]


class PromptSpec(Part):
    """What is tuned."""

    kind: Literal["soft", "deep", "text", "auto"] = Field(
        default="deep",
        description="soft: input embeddings; deep: keys and values in every layer; text: words, searched as the part text says; auto: "
        "soft or deep and what else the file leaves open is chosen by a search, see tune.search; with the part text, if only `text: {}`, a "
        "text prompt is searched first, from which soft and deep ones start, and the best of all on held-out rows is taken",
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
        "prompt.start_from; context: the first tokens of what is distilled; compaction (deep only): a few keys and values attended to "
        "as all of what is distilled. Default: compaction (distill, deep), context (distill, soft), root where there is one, else "
        "vocabulary (models that write) or random (encoders)",
    )
    text: str | None = Field(default=None, min_length=1, description="for start: text")
    start_from: str | None = Field(
        default=None, description="for start: prompt, the folder of a tuned prompt, of any kind; relative to the task file"
    )
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
        if self.kind == "soft" and (self.start in ("zero", "compaction") or self.sink):
            raise ValueError(f"{'sink' if self.sink else f'start: {self.start}'} is for kind: deep; a soft prompt has no keys and values")
        changed = (n for n, field in type(self).model_fields.items() if n != "kind" and getattr(self, n) != field.default)
        if self.kind == "text" and (other := next(changed, None)):
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


# Settings of `tune` that count untuned too.
UNTUNED_SETTINGS = ("seed", "batch_tokens", "max_tokens", "truncate", "label_score", "anchor_scale")
_ROUNDS, _FEWEST_STEPS, _MOST_STEPS = 5, 80, 500  # of a tuning whose task does not say how many steps it has


class TuneSpec(Part):
    """How the prompt is tuned. The defaults suit a few hundred examples."""

    seed: int = Field(default=0, ge=0, le=2**31 - 1, description="the only source of randomness")
    steps: int | None = Field(
        default=None, ge=1, le=1_000_000, description="optimizer steps at most; left out: five rounds over the examples, 80 to 500"
    )
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
    contrast: float | None = Field(
        default=None,
        ge=0.0,
        le=1000.0,
        description="in label_set of an encoder: weight of the loss pairs, which is added to the cross-entropy; 0: the cross-entropy "
        "alone. Default: 1, with self_training 0",
    )
    head: Literal["means", "logistic"] | None = Field(
        default=None,
        description="what decides in the end, fitted on the tuned embeddings of an encoder. After pairs and supervised_contrastive: the "
        "class means (default) or a logistic regression; after label_set: logistic, in place of the label anchors, for dozens of "
        "examples per label",
    )
    head_c: float = Field(default=10.0, gt=0.0, description="scikit-learn's C of the logistic head: the inverse of its penalty")
    calibrate: bool = Field(
        default=False, description="subtract each label's mean log-probability over the inputs; for labels of about equal frequency"
    )
    self_training: int = Field(
        default=0,
        ge=0,
        le=10,
        description="for classify: how often the prompt labels the inputs of data.unlabelled and is tuned anew on these too",
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

    def steps_for(self, examples: int, rounds: int = _ROUNDS) -> int:
        """`steps`; where they are left out five (or other) rounds over so many examples, but 80 at least and 500 at most."""
        return self.steps or min(max(_FEWEST_STEPS, -(-rounds * examples // self.batch_examples)), _MOST_STEPS)

    @property
    def weight_of_pairs(self) -> float:
        """`contrast`, or its default: 1, but 0 with self-training, whose rounds gain less from a prompt that compared its examples."""
        return (0.0 if self.self_training else 1.0) if self.contrast is None else self.contrast

    @property
    def contrastive(self) -> bool:
        """Whether the loss compares examples with each other, so that a head is fitted afterwards."""
        return self.loss in ("pairs", "supervised_contrastive")

    @model_validator(mode="after")
    def _loss_fits(self) -> TuneSpec:
        if self.head and not self.contrastive and (self.head, self.loss) != ("logistic", "label_set"):
            after = "pairs, supervised_contrastive or label_set" if self.head == "logistic" else "pairs or supervised_contrastive"
            raise ValueError(f"head: {self.head} follows loss: {after}; with {self.loss} there is none")
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
