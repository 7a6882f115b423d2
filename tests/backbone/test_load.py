"""Loading: once per process, in the asked precision, on the asked device, from a folder or a pinned hub revision."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers
from helpers import (
    a_task,
    assert_equal_to_rounding,
    backbone_at,
    behind_cache,
    plain_model,
    random_ids,
    random_prefix,
    save_tiny,
    wordless_tokenizer,
)
from hub_server import COMMIT, pooling_hub
from prefix_attention import PromptForest
from torch import Tensor

from prompt_core.backbone import Backbone, ForestPass, load_backbone
from prompt_core.errors import PromptmillError
from prompt_core.task import BackboneSpec, TaskSpec
from prompt_core.task_file import parse_task

TEXTS = random_ids(9, 4, vocabulary=250)


def packed(backbone: Backbone, keys: Tensor | None = None, values: Tensor | None = None, texts: Sequence[Tensor] = TEXTS) -> Tensor:
    """Last hidden states of the texts in one packed row, behind a deep prefix if there is one."""
    lengths = [len(ids) for ids in texts]
    forest = PromptForest.from_segments(lengths, [-1] * len(texts), prefix_lengths=() if keys is None else [keys.shape[1]])
    return backbone.hidden_states(backbone.embed(torch.cat(list(texts))), forest.position_ids, ForestPass(forest, keys, values))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("load") / "tiny", wordless_tokenizer())


def test_the_same_model_is_loaded_once_however_it_is_asked_for(folder: Path) -> None:
    first = load_backbone(BackboneSpec(name=str(folder)))
    again = load_backbone(BackboneSpec(name=folder.name, dtype=first.identity.dtype, device=first.device.type), folder.parent)
    assert again is first


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_states_and_identity_have_the_asked_dtype(folder: Path, dtype: Any) -> None:
    backbone = load_backbone(BackboneSpec(name=str(folder), dtype=dtype))
    assert (backbone.identity.dtype, backbone.dtype) == (dtype, getattr(torch, dtype))
    assert packed(backbone).dtype == backbone.dtype
    assert {weight.dtype for weight in backbone._model.parameters()} == {backbone.dtype}


def test_all_weights_are_frozen(folder: Path) -> None:
    backbone = backbone_at(str(folder))
    assert not backbone._model.training
    assert not any(weight.requires_grad for weight in backbone._model.parameters())


def test_a_device_is_used_as_named_and_refused_where_it_is_not_there(folder: Path) -> None:
    assert load_backbone(BackboneSpec(name=str(folder), device="cpu")).device == torch.device("cpu")
    message = re.escape(f"backbone: tiny: device: cuda:64, but torch sees {torch.cuda.device_count()} GPUs here. Use auto, cpu or")
    with pytest.raises(PromptmillError, match=message):
        load_backbone(BackboneSpec(name=str(folder), device="cuda:64"))


def a_task_on(**backbone: str) -> TaskSpec:
    return parse_task(a_task().model_dump() | {"backbone": {"name": "minilm", **backbone}}, "t.yaml", Path())


def test_where_a_base_lies_is_said_once_and_is_no_part_of_a_prompt() -> None:
    with pytest.raises(PromptmillError, match="backbone: device 'cpu' and device_map 'auto' exclude each other; drop one"):
        a_task_on(device="cpu", device_map="auto")
    with pytest.raises(PromptmillError, match=r"backbone.device: String should match pattern .*\(found 'gpu'\)"):
        a_task_on(device="gpu")
    assert a_task_on(device="cpu").without_places("minilm") == a_task_on(device="cuda:1").without_places("minilm")
    assert a_task_on(quantization="4bit").without_places("minilm") != a_task_on().without_places("minilm")


def test_a_device_map_gives_the_same_states(folder: Path) -> None:
    mapped = load_backbone(BackboneSpec(name=str(folder), dtype="float32", device_map="auto"))
    assert_equal_to_rounding(packed(mapped), packed(backbone_at(str(folder))).to(mapped.device))


def test_layers_that_lie_elsewhere_give_the_same_states_and_gradients(folder: Path, tmp_path: Path) -> None:
    places = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu"}
    places |= {"model.rotary_emb": "cpu", "lm_head": "disk"}
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", device_map=places, offload_folder=tmp_path
    )
    here = backbone_at(str(folder))
    spread = Backbone(model, here.tokenizer, True, False, here.identity, None)
    results = []
    for backbone in (here, spread):
        keys, values = (states.requires_grad_() for states in random_prefix(backbone, 3))
        states = packed(backbone, keys, values)
        backbone.logits(states).square().mean().backward()
        results.append((states.detach(), keys.grad))
    for found, expected in zip(*results, strict=True):
        assert_equal_to_rounding(found, expected)
    assert torch.equal(spread.vocabulary, here.vocabulary)


def test_what_an_embedding_scales_its_table_by_is_known(folder: Path) -> None:
    sizes = {"vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    model = transformers.BioGptForCausalLM(transformers.BioGptConfig(**sizes, attn_implementation="eager")).eval()
    here = backbone_at(str(folder))
    scaled = Backbone(model, here.tokenizer, True, False, here.identity, None)
    for backbone, scale in ((here, 1.0), (scaled, 32**0.5)):
        assert backbone.embedding_scale == scale
        assert_equal_to_rounding(backbone.vocabulary, backbone._embed.weight * scale)


def test_longrope_keeps_to_the_range_in_which_no_example_turns_the_others(tmp_path: Path) -> None:
    assert backbone_at(str(save_tiny("phi3_long", tmp_path / "long", wordless_tokenizer()))).max_positions == 64
    assert backbone_at(str(save_tiny("phi3", tmp_path / "short", wordless_tokenizer()))).max_positions == 256
    assert backbone_at(str(save_tiny("roberta", tmp_path / "roberta", wordless_tokenizer()))).max_positions == 254


def test_an_encoder_pools_as_its_own_settings_say(tmp_path: Path) -> None:
    states, lengths = torch.arange(10.0).view(5, 2), [2, 3]
    mean = save_tiny("bert", tmp_path / "mean", wordless_tokenizer())
    assert backbone_at(str(mean)).pool(states, lengths).tolist() == [[1, 2], [6, 7]]
    first = save_tiny("bert", tmp_path / "first", wordless_tokenizer())
    (first / "1_Pooling").mkdir()
    (first / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    assert backbone_at(str(first)).pool(states, lengths).tolist() == [[0, 1], [4, 5]]
    shutil.copytree(first, tmp_path / "newer")  # as sentence-transformers writes it since 2026
    (tmp_path / "newer" / "1_Pooling" / "config.json").write_text(json.dumps({"embedding_dimension": 32, "pooling_mode": "cls"}))
    assert backbone_at(str(tmp_path / "newer")).pool(states, lengths).tolist() == [[0, 1], [4, 5]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """The hub's cache as a download leaves it, with two revisions of one model."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = tmp_path / "models--org--tiny"
    shutil.copytree(folder, model / "snapshots" / ("a" * 40))
    save_tiny("qwen2", model / "snapshots" / ("b" * 40), wordless_tokenizer())
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("b" * 40)
    return model


def test_a_hub_id_is_loaded_at_its_pinned_revision(hub: Path, folder: Path) -> None:
    pinned = load_backbone(BackboneSpec(name="org/tiny", revision="a" * 40, dtype="float32"))
    assert (pinned.identity.name, pinned.identity.revision, pinned.origin) == ("org/tiny", "a" * 40, None)
    assert pinned.identity.weights == backbone_at(str(folder)).identity.weights
    newest = load_backbone(BackboneSpec(name="org/tiny", dtype="float32"))
    assert (newest.identity.revision, newest.identity.architecture) == ("b" * 40, "Qwen2ForCausalLM")
    with pytest.raises(PromptmillError, match=r"backbone: org/tiny: cannot be loaded \(.*\). Check the name, the revision") as caught:
        load_backbone(BackboneSpec(name="org/tiny", revision="c" * 40))
    assert "\n" not in str(caught.value)


def test_a_partly_downloaded_snapshot_is_enough_where_it_has_the_model(hub: Path) -> None:
    """As `hf download --include` leaves it: the hub's cache knows of files that are not there."""
    (hub / "trees").mkdir()
    listed = {"format_version": 1, "files": {"onnx/model.onnx": {"size": 1, "blob_id": "0" * 40}}}
    (hub / "trees" / f"{'b' * 40}.json").write_text(json.dumps(listed))
    with pytest.raises(huggingface_hub.errors.IncompleteSnapshotError):
        huggingface_hub.snapshot_download("org/tiny", local_files_only=True)
    assert load_backbone(BackboneSpec(name="org/tiny", dtype="float32")).identity.revision == "b" * 40


def test_an_encoder_of_the_hub_pools_as_its_settings_there_say(
    hub: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    snapshots = hub.parent / "models--org--encoder" / "snapshots"
    for commit in (COMMIT, "e" * 40, "f" * 40):
        save_tiny("bert", snapshots / commit, wordless_tokenizer())  # all that transformers downloads
    states = torch.arange(4.0).view(2, 2)

    def pooled(commit: str) -> list[Any]:
        found: list[Any] = load_backbone(BackboneSpec(name="org/encoder", revision=commit, dtype="float32")).pool(states, [2]).tolist()
        return found

    with pooling_hub() as address:
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        assert pooled(COMMIT) == [[0, 1]]
        assert pooled("e" * 40) == [[1, 2]]
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "how it pools" not in caplog.text
    assert pooled("f" * 40) == [[1, 2]]
    assert "org/encoder: how it pools is not in the hub's cache and the hub is out of reach" in caplog.text


def test_a_models_own_code_is_never_run(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "model", wordless_tokenizer())
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    with pytest.raises(PromptmillError, match=r"backbone: model: cannot be loaded .*contains custom code") as caught:
        backbone_at(str(folder))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_quantization_without_bitsandbytes_says_what_to_install(folder: Path) -> None:
    with pytest.raises(
        PromptmillError, match=r"tiny: quantization: 4bit, but bitsandbytes is not installed\. Run: pip install bitsandbytes"
    ):
        load_backbone(BackboneSpec(name=str(folder), quantization="4bit"))


@pytest.fixture(scope="module", params=["8bit", "4bit"])
def quantized(request: pytest.FixtureRequest, folder: Path) -> Backbone:
    pytest.importorskip("bitsandbytes")
    return load_backbone(BackboneSpec(name=str(folder), dtype="float32", quantization=request.param))


def test_a_quantized_base_is_another_base_and_says_so(quantized: Backbone, folder: Path) -> None:
    plain = backbone_at(str(folder))
    assert quantized.identity.dtype in ("float32+8bit", "float32+4bit")
    assert quantized.identity.weights != plain.identity.weights
    assert quantized.identity.model_copy(update={"dtype": "float32", "weights": plain.identity.weights}) == plain.identity
    as_recorded = BackboneSpec(name=str(folder), quantization=quantized.identity.dtype.partition("+")[2])
    assert load_backbone(as_recorded.model_copy(update={"dtype": quantized.identity.dtype})) is quantized


def test_a_quantized_base_gives_the_states_and_gradients_of_its_rounded_weights(quantized: Backbone, folder: Path) -> None:
    rounded = plain_model(folder)
    for name, module in quantized._model.named_modules():
        if "Linear" in type(module).__name__ and name != "lm_head":
            rounded.get_submodule(name).weight.data = dequantized(module)

    def by_the_book(keys: Tensor, values: Tensor) -> Tensor:
        return torch.cat([behind_cache(rounded, keys, values, ids) for ids in TEXTS])

    results = []
    for hidden in (partial(packed, quantized), by_the_book):
        keys, values = (states.requires_grad_() for states in random_prefix(quantized, 3))
        states = hidden(keys, values)
        states.sum().backward()
        results.append((states.detach(), keys.grad))
    tolerance = 1e-5 if quantized.identity.dtype == "float32+4bit" else 0.1  # 8 bits round the inputs of each layer too
    for found, expected in zip(*results, strict=True):
        assert found is not None and expected is not None
        assert (found - expected).norm() <= tolerance * expected.norm()


def dequantized(module: Any) -> Tensor:
    import bitsandbytes

    if isinstance(module, bitsandbytes.nn.Linear4bit):
        weight: Tensor = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        return weight
    rounded: Tensor = module.state.CB.float() * module.state.SCB[:, None] / 127
    return rounded


def test_an_example_on_a_quantized_base_is_the_same_alone(quantized: Backbone) -> None:
    with torch.no_grad():
        assert_equal_to_rounding(packed(quantized).split([9, 4])[1], packed(quantized, texts=TEXTS[1:]))
