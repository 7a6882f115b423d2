"""`tokens` as GGUF: the base's own file with soft prompts as vocabulary, for llama.cpp and what is built on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from numpy.typing import NDArray

from prompt_core.export.licence import base_of
from prompt_core.export.package import RECIPES, Published, package, refused, write_json
from prompt_core.export.tokens import usage_of_texts
from prompt_core.export.vocabulary import never_chosen, vocabulary_of

Layers = Literal["keep", "f32"]
MODEL = "model.gguf"
_TABLE, _HEAD = "token_embd.weight", "output.weight"
_CONTROL = 3  # of tokenizer.ggml.token_type: a token that text spells whole and that is not printed
_RUN = f"""
```sh
llama-server -m {MODEL}
curl localhost:8080/completion -d '{{"prompt": "TEXT", "temperature": 0, "n_predict": 64}}'
```

LAYERS

"""
_KEPT = """The layers are the base's own bytes; embeddings and head are F16. llama.cpp rounds activations wherever it multiplies by
quantised weights: texts then differ here and there from those of the dequantised model that the prompt was tuned on. Export with
`--layers f32` where they must be the same."""
_F32 = "All weights are F32, so that llama.cpp rounds nothing."


def export_gguf(published: Sequence[Published], folder: Path, layers: Layers = "keep") -> None:
    """Write the GGUF that the prompts were tuned on with the prompts as tokens and an explicit output matrix.

    Args:
        published: soft prompts whose backbone is a GGUF file.
        folder: what to write.
        layers: `keep` copies the layers as they are, `f32` dequantises them.

    Raises:
        PromptmillError: as `vocabulary_of`, the base is no GGUF file, or the folder cannot be written.
    """
    added = vocabulary_of(published)
    file = base_of(published[0].prompt).weights
    if file is None:
        why = "its base is no GGUF file"
        raise refused(published[0], "GGUF", why, "Export without --gguf and convert that folder with llama.cpp's convert_hf_to_gguf.py.")
    reader = GGUFReader(file)
    known = len(reader.fields["tokenizer.ggml.tokens"].contents())
    run = _RUN.replace("LAYERS", _F32 if layers == "f32" else _KEPT)
    with package(folder, published, "GGUF", usage_of_texts(added) + run + added.texts()) as beside:
        _write(beside / MODEL, reader, added.tokens, added.rows.numpy(), layers)
        write_json(beside / RECIPES, added.recipes(known))


def _write(path: Path, reader: GGUFReader, tokens: Sequence[str], rows: NDArray[np.float32], layers: Layers) -> None:
    writer = GGUFWriter(path, reader.fields["general.architecture"].contents())
    for name, value, kind, item in _extended_fields(reader, tokens, layers):
        writer.add_key_value(name, value, kind, item)
    pending = _tensors(reader, rows, layers)
    for name, shape, dtype, size, kind, _ in pending:
        writer.add_tensor_info(name, shape, dtype, size, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for *_, content in pending:  # one at a time: a large model is never in memory as a whole
        writer.write_tensor_data(content())
    writer.close()


def _extended_fields(
    reader: GGUFReader, tokens: Sequence[str], layers: Layers
) -> list[tuple[str, Any, GGUFValueType, GGUFValueType | None]]:
    architecture = reader.fields["general.architecture"].contents()
    more: dict[str, list[Any]] = {
        "tokenizer.ggml.tokens": list(tokens),
        "tokenizer.ggml.token_type": [_CONTROL] * len(tokens),
        "tokenizer.ggml.scores": [0.0] * len(tokens),
    }
    fields = []
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":  # the writer's own
            continue
        value = field.contents()
        if name in more:
            value = [*value, *more[name]]
        elif name == f"{architecture}.vocab_size":
            value += len(tokens)
        elif name == "tokenizer.ggml.add_bos_token":
            value = False  # the texts are whole
        elif name == "general.file_type" and layers == "f32":
            value = int(gguf.LlamaFileType.ALL_F32)
        item = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        fields.append((name, value, field.types[0], item))
    return fields


_Tensor = tuple[str, Sequence[int], Any, int, Any, Callable[[], NDArray[Any]]]


def _tensors(reader: GGUFReader, rows: NDArray[np.float32], layers: Layers) -> list[_Tensor]:
    """Name, shape, dtype, bytes, quantisation and content of each tensor."""
    own = {tensor.name: tensor for tensor in reader.tensors}
    wide = np.dtype(np.float32 if layers == "f32" else np.float16)

    def numbers(name: str) -> NDArray[np.float32]:
        values: NDArray[np.float32] = gguf.quants.dequantize(own[name].data, own[name].tensor_type)
        return values

    def table() -> NDArray[Any]:
        return np.concatenate([numbers(_TABLE), rows]).astype(wide)

    def head() -> NDArray[Any]:
        known = numbers(_HEAD if _HEAD in own else _TABLE)
        new = never_chosen(torch.from_numpy(known)).numpy()
        return np.concatenate([known, np.tile(new, (len(rows), 1))]).astype(wide)

    shape = (own[_TABLE].shape[1] + len(rows), own[_TABLE].shape[0])
    extended = {_TABLE: table, _HEAD: head}
    found: list[_Tensor] = []
    for name in dict.fromkeys([*own, _HEAD]):
        if name in extended:
            found.append((name, shape, wide, int(np.prod(shape)) * wide.itemsize, None, extended[name]))
        elif layers == "f32":
            sizes = [int(size) for size in reversed(own[name].shape)]
            found.append((name, sizes, np.dtype(np.float32), int(np.prod(sizes)) * 4, None, partial(numbers, name)))
        else:
            data = own[name].data
            found.append((name, data.shape, data.dtype, data.nbytes, own[name].tensor_type, partial(np.asarray, data)))
    return found
