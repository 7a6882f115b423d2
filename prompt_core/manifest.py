"""The manifest of a tuned prompt: what it is, on what and how it was made. Canonical JSON, which the digest covers."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from prompt_core.data.drift import Profile
from prompt_core.ladder.record import LadderRecord
from prompt_core.text.prompt import TextPrompt
from prompt_core.text.record import TextSearchRecord
from prompt_core.trials import SearchRecord


class Record(BaseModel):
    """Base of the manifest's parts."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneIdentity(Record):
    """What the prompt was tuned on; a prompt refuses any other base."""

    name: str
    revision: str | None
    architecture: str
    dtype: str
    weights: str
    tokenizer: str


class Validation(Record):
    """One look at the validation loss; None where it was no finite number, which JSON does not have."""

    step: int
    loss: float | None


class TuningRecord(Record):
    """How the tuning went: the loss of every step, the step whose prompt was kept, and the steps whose loss was not finite."""

    steps: int
    kept_step: int
    train_loss: tuple[float, ...]
    validation: tuple[Validation, ...]
    rollbacks: tuple[int, ...] = ()


class SelfTrainingRound(Record):
    """What a round of self-training was tuned on.

    Attributes:
        inputs: that could be labelled.
        labelled: those whose label was sure enough to learn from.
        changed: share of the inputs whose label the round before had not given; None in the first.
    """

    inputs: int
    labelled: int
    changed: float | None


class SelfTrainingRecord(Record):
    """All rounds of self-training, and which prompt was kept.

    Attributes:
        rounds: in order.
        kept: the number of the round whose prompt it is; 0 is the tuning on labelled examples alone.
        right: validation rows that the prompt of each got right, from round 0 on; empty where there are none.
    """

    rounds: tuple[SelfTrainingRound, ...]
    kept: int
    right: tuple[int, ...]

    def summary(self) -> str:
        """One line."""
        learned = ""
        if self.kept:
            own = self.rounds[self.kept - 1]
            learned = f", {own.labelled:,} of {own.inputs:,} inputs without labels learned from"
        right = f"; validation rows right, from round 0: {', '.join(map(str, self.right))}" if self.right else ""
        return f"round {self.kept} of {len(self.rounds)} kept{learned}{right}"


class DataRecord(Record):
    """Which rows the prompt has seen, by content digest; and what they look like, to tell when new inputs do not."""

    train_rows: int
    train: str
    validation_rows: int
    validation: str
    unlabelled_rows: int = 0
    unlabelled: str | None = None
    profile: Profile | None = None


class EntityRecord(Record):
    """Entities of the rows that were tuned and validated on: how many, how many grew to whole tokens, how many were lost with cut text."""

    found: int
    rounded: int
    lost: int


class DistillRecord(Record):
    """What a distilled prompt stands for: tokens that its teacher read, and a digest of these, the model and the settings."""

    tokens: int
    teacher: str


class Manifest(Record):
    """Everything about a prompt but its tensors; `started_from` is the digest of the tuned prompt that it started from.
    `task` has the settings that it was tuned with; `search` is how they were chosen, if the data chose them. `text` is what
    a prompt of kind text says, and every other kind has `tuning` in its place. `text_search` is how words were found, `ladder`
    what was made of them, where `prompt.kind: auto` climbed from text. `self_training` is how the prompt labelled inputs itself."""

    format: Literal["promptmill/1"] = "promptmill/1"
    name: str
    kind: Literal["soft", "deep", "text"]
    tokens: int
    parameters: int
    task: dict[str, Any]
    labels: tuple[str, ...]
    max_new_tokens: int | None
    backbone: BackboneIdentity
    started_from: str | None = None
    search: SearchRecord | None = None
    distilled: DistillRecord | None = None
    text: TextPrompt | None = None
    text_search: TextSearchRecord | None = None
    ladder: LadderRecord | None = None
    tuning: TuningRecord | None = None
    self_training: SelfTrainingRecord | None = None
    truncated_rows: int
    entities: EntityRecord | None = None
    data: DataRecord
    versions: dict[str, str]
    device: str

    @model_validator(mode="after")
    def _parts_of_the_kind(self) -> Manifest:
        if (self.kind == "text") != (self.text is not None) or (self.kind == "text") == (self.tuning is not None):
            raise ValueError(f"kind {self.kind} does not go with these parts; a text prompt has text, any other has tuning")
        return self

    def canonical(self) -> bytes:
        """UTF-8 JSON with sorted keys: the bytes that the digest covers."""
        # Prompts of before they were there keep their digests.
        absent = {name for name in ("ladder", "self_training") if getattr(self, name) is None}
        return (json.dumps(self.model_dump(mode="json", exclude=absent), sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()
