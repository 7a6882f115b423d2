"""The tuned prompt as an artifact: tensors and a manifest whose bytes depend on content alone, and one digest over both."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import safetensors
from pydantic import BaseModel, ConfigDict, model_validator

from prompt_core.data.drift import Profile
from prompt_core.errors import PromptmillError
from prompt_core.extraction.tags import num_tags
from prompt_core.plain_json import parse_json
from prompt_core.task import TaskSpec, parse_task
from prompt_core.tensors import StoredTensors
from prompt_core.text.prompt import TextPrompt
from prompt_core.text.record import TextSearchRecord
from prompt_core.trials import SearchRecord

if TYPE_CHECKING:  # torch loads where numbers are needed: a text prompt is rendered without
    import torch

    from prompt_core.backbone import Backbone

MANIFEST, TENSORS, DIGEST, ORIGIN = "manifest.json", "prompt.safetensors", "digest", "origin.json"
_LARGEST_MANIFEST = 16 * 2**20


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
    """One look at the validation loss."""

    step: int
    loss: float


class TuningRecord(Record):
    """How the tuning went: the loss of every step, the step whose prompt was kept, and the steps whose loss was not finite."""

    steps: int
    kept_step: int
    train_loss: tuple[float, ...]
    validation: tuple[Validation, ...]
    rollbacks: tuple[int, ...] = ()


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
    a prompt of kind text says, `text_search` how it was found; no other kind has them, and every other has `tuning`."""

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
    tuning: TuningRecord | None = None
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
        return (json.dumps(self.model_dump(mode="json"), sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


@dataclass(frozen=True, eq=False)
class TunedPrompt:
    """A tuned prompt: manifest and tensors.

    Attributes:
        manifest: what it is, what it was tuned on and how.
        tensors: float32, contiguous, on the CPU. `soft`: `embeddings` [P, H]. `deep`: `keys` and `values`
            [L, P, Hkv, D], and `embeddings` [R, H] where the template has soft tokens behind its first field. `text`: none. A
            classifier on an encoder also has `anchors` [labels, H], or the logistic head's `head_weights` [labels, H] and
            `head_bias` [labels]; a calibrated one `label_bias` [labels]; a tagger `tag_weights` [tags, H] and `tag_bias` [tags].
        origin: where a local backbone was found when the prompt was tuned. A convenience for loading, outside the
            digest, since a path says nothing about content.
    """

    manifest: Manifest
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    origin: str | None = None

    @property
    def name(self) -> str:
        """The task's name."""
        return self.manifest.name

    @cached_property
    def task(self) -> TaskSpec:
        """The task file that the prompt was tuned by, without the paths of its data.

        Raises:
            PromptmillError: this version of promptmill does not know such a task.
        """
        return parse_task(self.manifest.task, f"prompt {self.name}: task", Path())

    @cached_property
    def worded(self) -> TaskSpec:
        """The task with what the model is shown in place of its template: of a text prompt its own wording."""
        return self.manifest.text.applied_to(self.task) if self.manifest.text else self.task

    @cached_property
    def digest(self) -> str:
        """SHA-256 over manifest and tensors, 64 hexadecimal digits."""
        return _digest(self.manifest.canonical(), self._tensor_bytes)

    @cached_property
    def _tensor_bytes(self) -> bytes:
        if isinstance(self.tensors, StoredTensors):
            return self.tensors.content
        import safetensors.torch

        content: bytes = safetensors.torch.save(dict(sorted(self.tensors.items())))
        return content

    @property
    def num_bytes(self) -> int:
        """Size of manifest and tensors on disk, in bytes."""
        return len(self.manifest.canonical()) + len(self._tensor_bytes)

    def save(self, folder: str | Path) -> None:
        """Write the prompt as a folder, beside and then renamed: whoever looks sees all of it or nothing.

        Raises:
            PromptmillError: the folder exists already, or its parent cannot be written to.
        """
        folder = Path(folder)
        beside = folder_beside(folder)
        try:
            (beside / MANIFEST).write_bytes(self.manifest.canonical())
            (beside / TENSORS).write_bytes(self._tensor_bytes)
            (beside / DIGEST).write_text(self.digest + "\n", encoding="ascii")
            if self.origin:
                (beside / ORIGIN).write_text(json.dumps({"backbone": self.origin}) + "\n", encoding="utf-8")
            beside.chmod(0o755)  # mkdtemp gives 0700; a published prompt is for other users too
            beside.rename(folder)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise

    @classmethod
    def load(cls, folder: str | Path) -> TunedPrompt:
        """Read a prompt and check that its bytes are those that were saved.

        Raises:
            PromptmillError: a file is missing, is not what its name says, or differs from the digest.
        """
        folder = Path(folder)
        manifest_bytes, tensor_bytes = (_read(folder / name) for name in (MANIFEST, TENSORS))
        recorded = _read(folder / DIGEST).decode("ascii", errors="replace").strip()
        if (found := _digest(manifest_bytes, tensor_bytes)) != recorded:
            what = f"the content's digest is {found[:12]}..., recorded is {recorded[:12]!r}"
            raise PromptmillError(str(folder), what, "It was changed; restore it or tune again.")
        manifest = _parse(manifest_bytes, folder / MANIFEST)
        try:
            tensors = StoredTensors(tensor_bytes)
        except safetensors.SafetensorError as error:
            raise PromptmillError(str(folder / TENSORS), f"is not safetensors ({error})", "Tune the prompt again.") from None
        _check_tensors(manifest, tensors, folder / TENSORS)
        return cls(manifest, tensors, _read_origin(folder / ORIGIN))

    def check_base(self, found: BackboneIdentity) -> None:
        """Refuse a backbone other than the one that the prompt was tuned on.

        Raises:
            PromptmillError: weights or tokenizer differ.
        """
        for part in ("weights", "tokenizer"):
            tuned_on, other = getattr(self.manifest.backbone, part), getattr(found, part)
            if tuned_on != other:
                raise PromptmillError(
                    f"prompt {self.name}",
                    f"was tuned on {self.manifest.backbone.name} with {part} {tuned_on[:12]}, this backbone's are {other[:12]}",
                    "Use the base it was tuned on, or tune it again on this one.",
                )

    def render(self, fields: Mapping[str, Any]) -> str | list[dict[str, str]]:
        """What a model reads for one input: a string, or chat messages with `role` and `content`. Loads no model.

        Raises:
            PromptmillError: the prompt is not of kind text, or a field of its template is absent or empty.
        """
        if self.manifest.text is None:
            what = f"is of kind {self.manifest.kind}, numbers that no text can say"
            raise PromptmillError(f"prompt {self.name}", what, "Use predict, or export it.")
        return self.manifest.text.render(self.task, fields)

    def predict(
        self,
        inputs: Sequence[str | Mapping[str, Any]],
        backbone: Backbone | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """Labels, generated texts or entities (a JSON list), one per input, in order.

        Args:
            inputs: texts, for a template with one field; or mappings with the template's fields.
            backbone: the loaded frozen model; by default the one named in the manifest is loaded, once per process.
            on_progress: called with (finished, all) as inputs are finished.

        Raises:
            PromptmillError: an input lacks a field, or the backbone is not the one the prompt was tuned on.
        """
        from prompt_core.prediction import predict  # torch and transformers load when they are needed

        return predict(self, inputs, backbone, on_progress)


def folder_beside(folder: Path) -> Path:
    """A new folder next to `folder`, to be filled and then renamed to it; missing parents are made.

    Raises:
        PromptmillError: `folder` exists already, or its parent cannot be written to.
    """
    if folder.exists():
        raise PromptmillError(str(folder), "exists already", "Name a folder that does not.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise PromptmillError(str(folder), f"cannot be written ({error.strerror})", "Name a folder that you can write to.") from None


def _digest(manifest: bytes, tensors: bytes) -> str:
    parts = (hashlib.sha256(manifest).digest(), hashlib.sha256(tensors).digest())
    return hashlib.sha256(b"promptmill/1" + b"".join(parts)).hexdigest()


def _read(path: Path) -> bytes:
    try:
        if path.name != TENSORS and path.stat().st_size > _LARGEST_MANIFEST:
            raise PromptmillError(str(path), f"is larger than {_LARGEST_MANIFEST} bytes", "This is no file of a prompt.")
        return path.read_bytes()
    except OSError as error:
        fix = "A prompt is a folder that `promptmill tune` wrote."
        raise PromptmillError(str(path), f"cannot be read ({error.strerror})", fix) from None


def _read_origin(path: Path) -> str | None:
    if not path.exists():
        return None
    content = _read(path)
    try:
        return str(json.loads(content)["backbone"])
    except (ValueError, RecursionError, LookupError, TypeError):
        fix = 'Remove it, or write {"backbone": "<path of the frozen model>"}.'
        raise PromptmillError(str(path), "does not say where the backbone is", fix) from None


def _parse(content: bytes, path: Path) -> Manifest:
    try:
        return parse_json(content, Manifest)
    except ValueError as error:
        raise PromptmillError(str(path), f"is not a manifest ({error})", "Use the version of promptmill that wrote it.") from None


def _check_tensors(manifest: Manifest, tensors: StoredTensors, path: Path) -> None:
    expected = {"soft": {"embeddings": 2}, "deep": {"keys": 4, "values": 4}, "text": {}}[manifest.kind]
    tagger = {"tag_weights": 2, "tag_bias": 1} if manifest.labels and manifest.task.get("objective") == "extract" else {}
    # A classifier on an encoder has anchors or a linear head; on a causal model its label words are the task's.
    classifier = {"anchors": 2, "head_weights": 2, "head_bias": 1, "label_bias": 1} if manifest.labels and not tagger else {}
    expected |= tagger
    allowed = expected | ({} if manifest.kind == "text" else {"embeddings": 2}) | classifier
    one_head = tensors.keys() & classifier.keys() - {"label_bias"} in (set(), {"anchors"}, {"head_weights", "head_bias"})
    if not one_head or not expected.keys() <= tensors.keys() <= allowed.keys():
        what = f"holds {sorted(tensors)}, a {manifest.kind} prompt has {sorted(expected)}"
        raise PromptmillError(str(path), what, "Tune the prompt again.")
    counts = {
        **dict.fromkeys(classifier, (0, len(manifest.labels), "labels")),
        **dict.fromkeys(tagger, (0, num_tags(manifest.labels), "tags")),
        "keys": (1, manifest.tokens, "tokens"),
        "values": (1, manifest.tokens, "tokens"),
    }
    if manifest.kind == "soft":
        counts["embeddings"] = (0, manifest.tokens, "tokens")
    for name in tensors:
        shape, dtype = tensors.shape(name), tensors.dtype(name)
        dimension, count, unit = counts.get(name, (0, shape[0] if shape else 0, "rows"))
        if dtype != "float32" or len(shape) != allowed[name] or shape[dimension] != count:
            what = f"tensor {name} is {dtype} {shape}, the manifest says {count} {unit}"
            raise PromptmillError(str(path), what, "Tune the prompt again.")
        if not tensors.is_finite(name):
            raise PromptmillError(str(path), f"tensor {name} has values that are not finite", "Tune the prompt again.")
