"""A GGUF file as a transformers folder: dequantised once, kept in the user's cache under the file's digest."""

from __future__ import annotations

import tempfile
from pathlib import Path

from prompt_core.backbone.identity import file_digest
from prompt_core.cache import cache_folder
from prompt_core.errors import PromptmillError, kind_of_fault


def converted(file: Path) -> Path:
    """The folder with the float32 model and tokenizer of a GGUF file; made at the first call (seconds), reused after.

    Raises:
        PromptmillError: the file is damaged or of an architecture that transformers does not read from GGUF, or the cache cannot be
            written.
    """
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise PromptmillError(f"backbone: {file}", "is not a GGUF file", "Fetch the file again.")
    folder = cache_folder("gguf") / file_digest(file)[:32]
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=folder.parent, ignore_cleanup_errors=True) as beside:
            _convert(file, Path(beside) / "new")
            (Path(beside) / "new").rename(folder)
    except OSError as error:
        if not folder.is_dir():  # another process may have been first; its result is the same
            what = f"cannot be converted in {folder.parent} ({error.strerror or error})"
            raise kind_of_fault(error)(f"backbone: {file}", what, "Free space there, or set XDG_CACHE_HOME to another folder.") from None
    return folder


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    except Exception as error:  # the readers below raise whatever they meet first in a damaged file
        reason = " ".join(str(error).split())[:200]
        fix = "The file is damaged or its architecture unknown."
        raise PromptmillError(f"backbone: {file}", f"cannot be read as GGUF ({reason})", fix) from None
    # A model that remembers its quantisation refuses save_pretrained; its weights are plain float32 by now.
    if hasattr(loaded.config, "quantization_config"):
        del loaded.config.quantization_config
    plain = type(loaded)(loaded.config)
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
