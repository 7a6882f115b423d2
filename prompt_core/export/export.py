"""`export`: from the name of a format to the one function that writes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, get_args

from prompt_core.errors import PromptmillError, nearest
from prompt_core.export.folder import export_folder
from prompt_core.export.gguf import Layers, export_gguf
from prompt_core.export.kv import export_kv
from prompt_core.export.package import Published, refused
from prompt_core.export.peft import PeftType, export_peft
from prompt_core.export.text import export_text
from prompt_core.export.tgis import export_tgis
from prompt_core.export.tokens import export_tokens
from prompt_core.export.vllm import export_vllm

# Each format of one prompt, with its own file.
_OF_ONE: dict[str, Callable[[Published, Path], None]] = {
    "folder": export_folder,
    "vllm": export_vllm,
    "kv": export_kv,
    "tgis": export_tgis,
    "text": export_text,
}
_OF_TEXTS = ("folder", "kv", "text")  # what can say a prompt that is words
T = TypeVar("T")
FORMATS = ("tokens", "peft", *_OF_ONE)


def export(
    published: Sequence[Published],
    folder: Path,
    form: str = "folder",
    *,
    gguf: bool = False,
    layers: str | None = None,
    peft_type: str | None = None,
) -> None:
    """Write published prompts to a new folder, all of it or nothing.

    Args:
        published: one; for `tokens` also several on one base.
        folder: which does not exist yet.
        form: one of `FORMATS`.
        gguf, layers: for `tokens`, see `export_gguf`.
        peft_type: for `peft`, see `export_peft`.

    Raises:
        PromptmillError: no such format, an option that is not the format's, or the format cannot express the prompt, with the reason.
    """
    if form not in FORMATS:
        raise PromptmillError("--format", f'"{form}" is no format', nearest(form, FORMATS))
    if form != "tokens" and len(published) > 1:
        raise PromptmillError(
            f"export as {form}", f"{len(published)} prompts are named", "Only tokens takes several; export each by itself."
        )
    if form not in _OF_TEXTS and (texts := [each for each in published if each.prompt.manifest.kind == "text"]):
        raise refused(texts[0], form, "it is words, which no tensor says better", f"Use {', '.join(_OF_TEXTS)}.")
    if ((gguf or layers) and form != "tokens") or (layers and not gguf):
        raise PromptmillError("--layers" if layers else "--gguf", f"is not for --format {form}", "Write --format tokens --gguf.")
    if peft_type and form != "peft":
        raise PromptmillError("--peft-type", f"is not for --format {form}", "Write --format peft.")
    if gguf:
        export_gguf(published, folder, _one_of(layers or "keep", get_args(Layers), "--layers"))
    elif form == "tokens":
        export_tokens(published, folder)
    elif form == "peft":
        export_peft(published[0], folder, _one_of(peft_type, get_args(PeftType), "--peft-type") if peft_type else None)
    else:
        _OF_ONE[form](published[0], folder)


def _one_of(value: str, known: tuple[T, ...], option: str) -> T:
    for each in known:
        if each == value:
            return each
    raise PromptmillError(option, f'"{value}" is not known', nearest(value, map(str, known)))
