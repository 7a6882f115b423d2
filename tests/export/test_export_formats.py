"""The other formats, each read by what it is for, and what all formats have in common."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from export_builders import EVALUATION, TEXTS, published, run_readme
from helpers import a_task, backbone_at, examples, plain_model, save_tiny

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import Backbone
from prompt_core.errors import PromptmillError
from prompt_core.export import Published, export
from prompt_core.text.prompt import Demonstration, TextPrompt
from prompt_core.tuning import tune

SOFT, DEEP = {"prompt": {"kind": "soft"}}, {"prompt": {"kind": "deep"}}


@pytest.mark.parametrize("parts", [SOFT, DEEP, {**DEEP, "evaluate": {"max_new_tokens": 12, "beams": 3}}])
@pytest.mark.parametrize("family", ["llama", "qwen2_local", "gpt2"])
def test_keys_and_values_in_transformers_generate(family: str, parts: dict[str, Any], tmp_path: Path) -> None:
    folder = save_tiny(family, tmp_path / "tiny-llama")
    backbone = backbone_at(str(folder))
    each = published(backbone, **parts)
    export([each], tmp_path / "out", "kv")
    for text, expected in zip(TEXTS[:2], each.prompt.predict(TEXTS[:2], backbone), strict=True):
        names = run_readme(tmp_path / "out", folder, text=text)
        assert names["tokenizer"].decode(names["answer"], skip_special_tokens=True).strip() == expected


def test_a_distilled_prompt_says_how_its_texts_are_written(llama: Backbone, tmp_path: Path) -> None:
    (tmp_path / "policy.md").write_text("Parcels up to 2 kg cost 49 kroner.", encoding="utf-8")
    parts = {"objective": "distill", "data": {"path": "questions.csv"}, "distill": {"context": "policy.md", "answer_tokens": 6, "top_k": 8}}
    settings = {"prompt": {"kind": "soft", "tokens": 4}, "tune": {"steps": 1, "max_tokens": 64}, "evaluate": {"beams": 2}}
    task = a_task(llama.identity.name, folder=tmp_path, template="Answer briefly. {{ text }}\n", **parts, **settings)
    prompt = tune(task, examples(*[(text, "") for text in TEXTS]), None, llama)
    export([Published(prompt, 1, EVALUATION)], tmp_path / "out", "tokens")
    (recipe,) = json.loads((tmp_path / "out" / "prompts.json").read_text(encoding="utf-8"))
    assert (recipe["max_new_tokens"], recipe["num_beams"]) == (prompt.manifest.max_new_tokens, 2) and "labels" not in recipe


@pytest.fixture(scope="module")
def capitals(smollm2: Backbone) -> Published:
    """A text prompt of solved lines, which the model goes on with."""
    known = {"France": "Paris", "Italy": "Rome", "Germany": "Berlin", "Spain": "Madrid", "Japan": "Tokyo"}
    searched = {"prompt": {"kind": "text"}, "text": {"rounds": 1, "together": 2, "demonstrations": 0}}
    parts = {"objective": "generate", "evaluate": {"few_shot": 0, "metrics": ["exact_match"], "max_new_tokens": 16}, **searched}
    found = tune(a_task("smollm2", template="Country: {{ text }}\nCapital:", **parts), examples(*known.items()), None, smollm2)
    shown = tuple(Demonstration(fields={"text": country}, answer=capital) for country, capital in [*known.items()][:4])
    text = TextPrompt(template=found.task.template, demonstrations=shown)
    prompt = TunedPrompt(found.manifest.model_copy(update={"text": text}), {}, found.origin)
    assert prompt.predict(["Japan"], smollm2) == ["Tokyo"]
    return Published(prompt, 1, EVALUATION)


@pytest.mark.parametrize("form", ["kv", "text"])
def test_solved_lines_say_where_an_answer_behind_them_ends(capitals: Published, tmp_path: Path, form: str) -> None:
    export([capitals], tmp_path / form, form)
    (recipe,) = json.loads((tmp_path / form / "prompts.json").read_text(encoding="utf-8"))
    assert recipe["stop"] == "\n\n"


@pytest.mark.slow  # transformers reads a GGUF file for half a minute
def test_the_readme_for_an_embedded_model_runs_as_it_stands(capitals: Published, tmp_path: Path) -> None:
    export([capitals], tmp_path / "kv", "kv")
    names = run_readme(tmp_path / "kv", text="Japan")
    written = names["tokenizer"].decode(names["answer"], skip_special_tokens=True)
    assert written.partition(names["prompt"]["stop"])[0].strip() == "Tokyo"


@pytest.mark.parametrize("template", ["Answer briefly. {{ text }}\n", "Read {{ soft(3) }} this: {{ text }} {{ soft(2) }} now\n"])
def test_prompt_embeds_of_the_client_in_transformers(
    llama: Backbone, llama_folder: Path, tmp_path: Path, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = published(llama, template, **SOFT)
    export([each], tmp_path / "out", "vllm")
    spec = importlib.util.spec_from_file_location("exported_client", tmp_path / "out" / "vllm_client.py")
    assert spec is not None and spec.loader is not None
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    prompt, model = client.Prompt(llama_folder), plain_model(llama_folder)
    monkeypatch.syspath_prepend(tmp_path / "out")
    monkeypatch.delitem(sys.modules, "vllm_client", raising=False)
    assert run_readme(tmp_path / "out", llama_folder)["request"] == prompt.request(text="...")
    for text, expected in zip(TEXTS, each.prompt.predict(TEXTS, llama), strict=True):
        embeds = prompt.embeds(text=text)[None]
        written = model.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2]),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=prompt.recipe["stop_token_ids"],
        )[0]
        assert llama.tokenizer.decode(written, skip_special_tokens=True).strip() == expected
    request = json.loads(json.dumps(prompt.request(text=TEXTS[0])))
    assert request["max_tokens"] == 12 and set(request) == {"prompt_embeds", "temperature", "max_tokens", "stop_token_ids"}


def test_the_prefix_that_tgis_reads(llama: Backbone, tmp_path: Path) -> None:
    each = published(llama, **SOFT)
    export([each], tmp_path / "out", "tgis")
    tensors = safetensors.torch.load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert list(tensors) == ["prompt_embeddings"]
    assert torch.equal(tensors["prompt_embeddings"], each.prompt.tensors["embeddings"])
    assert not list((tmp_path / "out").rglob("*.pt"))


@pytest.mark.parametrize(
    ("form", "template", "parts", "finding"),
    [
        ("vllm", "{{ text }}\n", DEEP, "as vllm: it is a deep prefix"),
        ("tgis", "{{ text }}\n", DEEP, "as tgis: it is a deep prefix"),
        ("tgis", "A {{ soft(2) }} {{ text }}\n", SOFT, "as tgis: its soft tokens do not all stand before the text"),
        ("kv", "{{ text }} {{ soft(2) }}\n", SOFT, "as kv: it has soft tokens behind the first field"),
    ],
)
def test_what_a_format_cannot_express_is_refused(
    llama: Backbone, tmp_path: Path, form: str, template: str, parts: dict[str, Any], finding: str
) -> None:
    with pytest.raises(PromptmillError, match=finding):
        export([published(llama, template, **parts)], tmp_path / "out", form)
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_scales_its_embeddings_gets_no_prompt_embeds(tmp_path: Path) -> None:
    each = published(backbone_at(str(save_tiny("gemma3", tmp_path / "gemma3"))), **SOFT)
    with pytest.raises(PromptmillError, match="servers differ in whether given ones are scaled again"):
        export([each], tmp_path / "out", "vllm")


@pytest.mark.parametrize("form", ["tokens", "peft", "vllm", "kv", "tgis"])
def test_a_classifier_on_an_encoder_is_for_promptmill_alone(bert: Backbone, tmp_path: Path, form: str) -> None:
    task = a_task(bert.origin or "", tune={"steps": 1}, prompt={"tokens": 2})
    prompt = tune(task, examples(("one", "a"), ("two", "b"), ("three", "a"), ("four", "b")), None, bert)
    with pytest.raises(PromptmillError, match="its base is an encoder with label anchors; the format is for causal models"):
        export([Published(prompt, 1, EVALUATION)], tmp_path / "out", form)


@pytest.mark.parametrize(
    ("count", "form", "options", "finding"),
    [
        (1, "pef", {}, '--format: "pef" is no format. Did you mean "peft"?'),
        (2, "kv", {}, "export as kv: 2 prompts are named. Only tokens takes several"),
        (1, "kv", {"gguf": True}, "--gguf: is not for --format kv"),
        (1, "tokens", {"layers": "f32"}, "--layers: is not for --format tokens. Write --format tokens --gguf"),
        (1, "tokens", {"layers": "f16", "gguf": True}, '--layers: "f16" is not known'),
        (1, "kv", {"peft_type": "cartridge"}, "--peft-type: is not for --format kv"),
        (1, "peft", {"peft_type": "cartrige"}, '--peft-type: "cartrige" is not known. Did you mean "cartridge"?'),
    ],
)
def test_an_option_that_does_not_fit_is_one_line(
    llama: Backbone, tmp_path: Path, count: int, form: str, options: dict[str, Any], finding: str
) -> None:
    with pytest.raises(PromptmillError) as caught:
        export([published(llama, **SOFT)] * count, tmp_path / "out", form, **options)
    assert finding in str(caught.value)


@pytest.mark.parametrize("form", ["tokens", "peft", "vllm", "kv", "tgis"])
def test_every_export_says_what_it_is_and_leaves_nothing_beside_it(llama: Backbone, tmp_path: Path, form: str) -> None:
    each = published(llama, **SOFT)
    export([each], tmp_path / "out", form)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (tmp_path / "out").stat().st_mode & 0o777 == 0o755
    own = tmp_path / "out" / "promptmill" / "t@1"
    assert (own / "manifest.json").read_bytes() == each.prompt.manifest.canonical()
    assert json.loads((own / "evaluation.json").read_text()) == EVALUATION
    page = (tmp_path / "out" / "README.md").read_text()
    assert page.startswith("# t@1 for ") and "licence not known" in page
    assert "chrf 31.5 (28 to 34.25)" in page and each.prompt.digest in page
    with pytest.raises(PromptmillError, match="exists already"):
        export([each], tmp_path / "out", form)
