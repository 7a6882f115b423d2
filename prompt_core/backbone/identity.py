"""Which model this is, by content: digests of weights and tokenizer, remembered per file so that they are computed once."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import platformdirs

from prompt_core.backbone.gguf import file_digest

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "chat_template.jinja")


def weights_digest(folder: Path, weights: Path | None) -> str:
    """SHA-256 over the weight files of a folder, or of the one file that `weights` names, 64 hexadecimal digits."""
    files = [weights] if weights else sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return _remembered(files[0])
    combined = hashlib.sha256()
    for file in files:
        combined.update(bytes.fromhex(_remembered(file)))
    return combined.hexdigest()


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 over the tokenizer's files and chat template, 64 hexadecimal digits."""
    combined = hashlib.sha256()
    for name in _TOKENIZER_FILES:
        if (folder / name).is_file():
            combined.update(name.encode() + (folder / name).read_bytes())
    settings = folder / "tokenizer_config.json"  # where older models keep their chat template
    if settings.is_file() and (template := json.loads(settings.read_text(encoding="utf-8")).get("chat_template")):
        combined.update(json.dumps(template).encode())
    return combined.hexdigest()


def _remembered(file: Path) -> str:
    """The file's digest, looked up by path, size and time of change before it is computed."""
    file = file.resolve()  # a hub snapshot is links into its blobs
    state = file.stat()
    key = hashlib.sha256(json.dumps([str(file), state.st_size, state.st_mtime_ns]).encode()).hexdigest()
    note = platformdirs.user_cache_path("promptmill") / "digests" / key
    if note.is_file() and len(known := note.read_text(encoding="ascii")) == 64:
        return known
    digest = file_digest(file)
    note.parent.mkdir(parents=True, exist_ok=True)
    beside = note.with_suffix(f".{os.getpid()}")
    beside.write_text(digest, encoding="ascii")
    beside.replace(note)
    return digest
