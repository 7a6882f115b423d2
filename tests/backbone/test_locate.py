"""From a backbone's name to a place that can be loaded; what cannot is one line that says what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from helpers import backbone_at, save_tiny, tokenizer_of, wordless_tokenizer

from prompt_core.backbone.locate import Located, locate
from prompt_core.errors import PromptmillError
from prompt_core.task import BackboneSpec


def found(name: str, folder: Path = Path()) -> Located:
    return locate(BackboneSpec(name=name), folder)


@pytest.fixture(scope="module")
def gguf_file() -> Path:
    """The embedded model's own file."""
    weights = found("smollm2").weights
    assert weights is not None
    return weights


def test_an_embedded_name_stands_for_its_package() -> None:
    minilm, smollm2 = found("minilm"), found("smollm2")
    assert (minilm.public_name, minilm.origin, minilm.is_hub) == ("minilm", None, False)
    assert (Path(minilm.source) / "config.json").is_file()
    assert (smollm2.public_name, smollm2.origin) == ("smollm2", None)
    assert (Path(smollm2.source) / "model.safetensors").is_file()


def test_a_folder_is_found_from_the_task_file_and_named_without_its_path(llama_folder: Path) -> None:
    located = found(llama_folder.name, llama_folder.parent)
    assert located == found(str(llama_folder))
    assert (located.source, located.public_name, located.origin) == (str(llama_folder), "tiny-llama", str(llama_folder))


def test_a_gguf_file_is_converted_once_for_its_content(tmp_path: Path, gguf_file: Path) -> None:
    copy = tmp_path / "my.gguf"
    copy.symlink_to(gguf_file)
    located = found("my.gguf", tmp_path)
    assert located.source == found("smollm2").source
    assert (located.public_name, located.weights) == ("my.gguf", copy)


def test_a_gguf_file_without_a_place_to_convert_it_in_is_one_line(tmp_path: Path, gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(gguf_file))  # a file, in which no folder can be made
    with pytest.raises(PromptmillError, match=r"backbone: .*: cannot be converted in .* \(Not a directory\)\. Free space there"):
        found(str(gguf_file), tmp_path)


def test_a_hub_id_is_left_to_the_hub_and_a_path_is_not() -> None:
    located = found("HuggingFaceTB/SmolLM2-135M")
    assert (located.is_hub, located.public_name, located.origin) == (True, "HuggingFaceTB/SmolLM2-135M", None)
    for path in ("./models/none", "models/a/b", "/none/at/all"):
        with pytest.raises(PromptmillError, match=re.escape(f'backbone: "{path}" is no embedded name, folder')):
            found(path)


def test_a_hub_id_that_transformers_would_take_for_a_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "org" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(
        PromptmillError, match=r'"org/tiny" is a hub id, but the current folder has a folder of this name, .*/here/org/tiny\)'
    ):
        found("org/tiny", tmp_path / "tasks")


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        PromptmillError, match=re.escape('"smolm2" is no embedded name, folder, .gguf file or hub id. Did you mean "smollm2"?')
    ):
        found("smolm2")


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PromptmillError, match=re.escape(f"backbone: folder {tmp_path} has no config.json. Give a folder")):
        found(str(tmp_path))


def test_a_folder_without_weights_or_with_pickled_ones_is_refused(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "model", wordless_tokenizer())
    (folder / "model.safetensors").unlink()
    message = re.escape(f"backbone: folder {folder} has no weights in safetensors. Save the model with save_pretrained; pickled")
    with pytest.raises(PromptmillError, match=message):
        found(str(folder))
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(PromptmillError, match=message):
        found(str(folder))


def test_a_folder_without_a_tokenizer_or_with_damaged_weights_is_one_line(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "model", wordless_tokenizer())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(PromptmillError, match=r"backbone: model: cannot be loaded \(.*\). Check the name") as caught:
        backbone_at(str(folder))
    assert "\n" not in str(caught.value)
    folder = save_tiny("llama", tmp_path / "other", wordless_tokenizer())
    for file in folder.glob("token*"):
        file.unlink()
    with pytest.raises(PromptmillError, match="backbone: other: "):
        backbone_at(str(folder))


def test_weights_that_lack_a_layer_are_refused(tmp_path: Path) -> None:
    import safetensors.torch

    folder = save_tiny("llama", tmp_path / "model", wordless_tokenizer())
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if ".layers.1." not in name}
    safetensors.torch.save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(PromptmillError, match=r"backbone: model: its files lack 9 weights, the first is model\.layers\.1\."):
        backbone_at(str(folder))


@pytest.mark.parametrize(
    ("kept", "finding"), [(2_000_000, "cannot be read as GGUF"), (100, "cannot be read as GGUF"), (0, "is not a GGUF file")]
)
def test_a_truncated_gguf_leaves_no_folder_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gguf_file: Path, kept: int, finding: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    damaged = tmp_path / "damaged.gguf"
    with gguf_file.open("rb") as file:
        damaged.write_bytes(file.read(kept))
    with pytest.raises(PromptmillError, match=rf"backbone: {re.escape(str(damaged))}: {finding}") as caught:
        found("damaged.gguf", tmp_path)
    assert "\n" not in str(caught.value)
    assert not any((tmp_path / "cache").rglob("gguf/*"))


def test_a_file_that_is_no_gguf_or_is_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("this is text")
    with pytest.raises(PromptmillError, match=r"text.gguf: is not a GGUF file. Fetch the file again"):
        found("text.gguf", tmp_path)
    with pytest.raises(
        PromptmillError, match=re.escape(f"backbone: there is no file {tmp_path / 'none.gguf'}. Give the path of a .gguf file")
    ):
        found("none.gguf", tmp_path)


def test_the_gguf_file_gives_the_tokenizer_and_chat_format_of_the_embedded_model() -> None:
    text = tokenizer_of("smollm2").apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n")
