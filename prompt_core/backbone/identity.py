"""Which model this is, by content: digests of weights and tokenizer, remembered per file so that they are computed once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from prompt_core.cache import cache_folder, keep, kept

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
)


def weights_digest(folder: Path, weights: Path | None, quantization: str | None = None) -> str:
    """SHA-256 of the weights that a model computes with, 64 hexadecimal digits.

    Args:
        folder: where the weight files are.
        weights: the one file that counts instead of the folder's.
        quantization: rounds the weights at load, so that they are others than the same files' as they stand.
    """
    files = [weights] if weights else _weight_files(folder)
    if len(files) == 1:
        digest = file_digest(files[0])
    else:
        combined = hashlib.sha256()
        for file in files:
            combined.update(bytes.fromhex(file_digest(file)))
        digest = combined.hexdigest()
    return digest if quantization is None else hashlib.sha256(f"{digest}+{quantization}".encode()).hexdigest()


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


def file_digest(file: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits; looked up in the user's cache before it is computed.

    What is remembered holds for path, inode, size and both times of change: the second one, the file system's own,
    moves even where a copy keeps the first.
    """
    file = file.resolve()  # a hub snapshot is links into its blobs
    state = file.stat()
    key = [str(file), state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns]
    note = cache_folder("digests") / hashlib.sha256(json.dumps(key).encode()).hexdigest()
    if (known := kept(note)) and len(known) == 64:
        return known.decode("ascii")
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    keep(note, digest.encode("ascii"))
    return digest


def _weight_files(folder: Path) -> list[Path]:
    """What transformers loads: one file, or the shards that an index names. The folder may hold the same in other forms too."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file() or not index.is_file():
        return [whole]
    return sorted(folder / name for name in set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
