"""A GGUF file as a transformers folder: dequantised once, kept in the user's cache under the file's digest."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import platformdirs

from prompt_core.backbone.identity import file_digest
from prompt_core.errors import PromptmillError


def converted(file: Path) -> Path:
    """The folder with the float32 model and tokenizer of a GGUF file; made at the first call (seconds), reused after.

    Raises:
        PromptmillError: the file is damaged or of an architecture that transformers does not read from GGUF.
    """
    with file.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise PromptmillError(f"backbone: {file}", "is not a GGUF file", "Fetch the file again.")
    folder = platformdirs.user_cache_path("promptmill") / "gguf" / file_digest(file)[:32]
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    try:
        _convert(file, beside)
        beside.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process may have been first; its result is the same
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
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
