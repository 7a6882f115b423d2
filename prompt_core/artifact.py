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
from typing import TYPE_CHECKING, Any

import safetensors

from prompt_core.errors import PromptmillError, kind_of_fault
from prompt_core.extraction.tags import num_tags
from prompt_core.inputs import Input, Inputs, read_input
from prompt_core.manifest import BackboneIdentity, Manifest
from prompt_core.plain_json import parse_json
from prompt_core.task import TaskSpec
from prompt_core.task_file import parse_task
from prompt_core.template import Template
from prompt_core.tensors import StoredTensors
from prompt_core.text.prompt import Demonstration

if TYPE_CHECKING:  # torch loads where numbers are needed: a text prompt is rendered without
    import torch

    from prompt_core.backbone import Backbone
    from prompt_core.ready import Answer

MANIFEST, TENSORS, DIGEST, ORIGIN = "manifest.json", "prompt.safetensors", "digest", "origin.json"
_LARGEST_MANIFEST = 16 * 2**20


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
        seconds: what the rungs of a ladder took, by name; outside the digest likewise.
    """

    manifest: Manifest
    tensors: Mapping[str, torch.Tensor] = field(repr=False)
    origin: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict, repr=False)

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
            PromptmillError: the folder exists already, its parent cannot be written to, or the disk is full.
        """
        folder = Path(folder)
        beside = folder_beside(folder)
        try:
            (beside / MANIFEST).write_bytes(self.manifest.canonical())
            (beside / TENSORS).write_bytes(self._tensor_bytes)
            (beside / DIGEST).write_text(self.digest + "\n", encoding="ascii")
            if outside := self._outside_the_digest():
                (beside / ORIGIN).write_text(json.dumps(outside) + "\n", encoding="utf-8")
            beside.chmod(0o755)  # mkdtemp gives 0700; a published prompt is for other users too
            beside.rename(folder)
        except BaseException as error:
            shutil.rmtree(beside, ignore_errors=True)
            if isinstance(error, OSError):
                what = f"cannot be written ({error.strerror})"
                raise kind_of_fault(error)(str(folder), what, "Check the disk and the access rights.") from None
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
        return cls(manifest, tensors, *_read_origin(folder / ORIGIN))

    def _outside_the_digest(self) -> dict[str, Any]:
        return ({"backbone": self.origin} if self.origin else {}) | ({"seconds": dict(self.seconds)} if self.seconds else {})

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

    def render(self, fields: Input, retrieved: Sequence[Demonstration] | None = None) -> str | list[dict[str, str]]:
        """What a model reads for one input: a string, or chat messages with `role` and `content`. Loads no model.

        Args:
            fields: of the input, or its text where the template has one field.
            retrieved: its demonstrations, of a prompt that retrieves them: see `retrieve`.

        Raises:
            PromptmillError: the prompt is not of kind text, a field of its template is absent or empty, or `retrieved` is missing.
        """
        if self.manifest.text is None:
            what = f"is of kind {self.manifest.kind}, numbers that no text can say"
            raise PromptmillError(f"prompt {self.name}", what, "Use predict, or export it.")
        return self.manifest.text.render(self.task, read_input(fields, Template(self.worded).fields), retrieved)

    def retrieve(self, inputs: Inputs, backbone: Backbone | None = None) -> list[list[Demonstration]]:
        """The demonstrations that a text prompt with retrieval shows each input, as `render` takes them. Loads its embedding model.

        Raises:
            PromptmillError: the prompt does not retrieve, an input lacks a field, or the embedding model is another one.
        """
        from prompt_core.prediction import demonstrations_for

        return demonstrations_for(self, inputs, backbone)

    def predict(
        self,
        inputs: Inputs,
        backbone: Backbone | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[str]:
        """Labels, generated texts or entities (a JSON list), one per input, in order.

        Args:
            inputs: texts, for a template with one field, or mappings with the template's fields, of any iterable; or a polars
                DataFrame with the fields as columns.
            backbone: the loaded frozen model; by default the one named in the manifest is loaded, once per process.
            on_progress: called with (finished, all) as inputs are finished.

        Raises:
            PromptmillError: inputs are one text or mapping alone, an input is neither or lacks a field, or the backbone is not the
                one the prompt was tuned on.
        """
        return [answer.text for answer in self.answer(inputs, backbone, on_progress)]

    def answer(
        self,
        inputs: Inputs,
        backbone: Backbone | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Answer]:
        """`predict` with scores: an `Answer`, text and score, for each input."""
        from prompt_core.mixed import predict  # torch and transformers load when they are needed

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
        raise kind_of_fault(error)(str(path), f"cannot be read ({error.strerror})", fix) from None


def _read_origin(path: Path) -> tuple[str | None, dict[str, float]]:
    """Where the backbone was, and what the rungs took."""
    if not path.exists():
        return None, {}
    content = _read(path)
    try:
        found = json.loads(content)
        seconds = {str(name): float(value) for name, value in found.get("seconds", {}).items()}
        return None if seconds and "backbone" not in found else str(found["backbone"]), seconds
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
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
