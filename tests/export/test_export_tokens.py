"""Prompts as vocabulary: plain text in transformers and in llama.cpp gives what the prompts give here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from export_builders import TEXTS, published, recipes, run_readme, text_of
from helpers import backbone_at, save_tiny

from prompt_core.backbone import Backbone
from prompt_core.errors import PromptmillError
from prompt_core.export import Published, export

SOFT = {"prompt": {"kind": "soft"}}
INSIDE = "Read {{ soft(3) }} this: {{ text }} {{ soft(2) }} and {{ more }}\n"


def answers(folder: Path, number: int, inputs: list[dict[str, str]]) -> list[str]:
    """What transformers' greedy decoding writes of the texts that an export's recipe makes."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    recipe, found = recipes(folder)[number], []
    for fields in inputs:
        ids = tokenizer(text_of(recipe, **fields), add_special_tokens=False, return_tensors="pt")
        written = model.generate(**ids, max_new_tokens=recipe["max_new_tokens"], do_sample=False)[0, ids.input_ids.shape[1] :]
        found.append(tokenizer.decode(written, skip_special_tokens=True).strip())
    return found


@pytest.fixture(scope="module")
def prompts(llama: Backbone) -> list[Published]:
    return [published(llama, **SOFT), published(llama, INSIDE, version=2, **SOFT)]


def test_several_prompts_in_one_folder_each_write_what_they_write_here(llama: Backbone, prompts: list[Published], tmp_path: Path) -> None:
    export(prompts, tmp_path / "out", "tokens")
    assert answers(tmp_path / "out", 0, [{"text": text} for text in TEXTS]) == prompts[0].prompt.predict(TEXTS, llama)
    inputs = [{"text": text, "more": "today"} for text in TEXTS]
    assert answers(tmp_path / "out", 1, inputs) == prompts[1].prompt.predict(inputs, llama)
    assert "<|pm:t@2:2|> this: " in text_of(recipes(tmp_path / "out")[1], **inputs[0])
    page = (tmp_path / "out" / "README.md").read_text()
    assert "```text\nRead <|pm:t@2:0|><|pm:t@2:1|><|pm:t@2:2|> this: {text} <|pm:t@2:3|><|pm:t@2:4|> and {more}\n" in page
    assert "chrf 31.5 (28 to 34.25)" in page and prompts[1].prompt.digest in page
    assert (tmp_path / "out" / "promptmill" / "t@2" / "digest").read_text().strip() == prompts[1].prompt.digest


def test_the_readme_runs(llama: Backbone, prompts: list[Published], tmp_path: Path) -> None:
    export(prompts[:1], tmp_path / "out", "tokens")
    names = run_readme(tmp_path / "out", text=TEXTS[0])
    written = names["generate"](names["text"], max_new_tokens=12, do_sample=False, return_full_text=False, add_special_tokens=False)[0][
        "generated_text"
    ]
    assert written.strip() == prompts[0].prompt.predict(TEXTS[:1], llama)[0]


@pytest.mark.parametrize("family", ["qwen2", "gemma3", "gpt2", "cohere", "opt"])
def test_other_families(family: str, tmp_path: Path) -> None:
    backbone = backbone_at(str(save_tiny(family, tmp_path / family)))
    prompt = published(backbone, **SOFT)
    export([prompt], tmp_path / "out", "tokens")
    assert answers(tmp_path / "out", 0, [{"text": text} for text in TEXTS]) == prompt.prompt.predict(TEXTS, backbone)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_new_token_is_never_the_most_likely_one_even_without_suppression(family: str, tmp_path: Path) -> None:
    backbone = backbone_at(str(save_tiny(family, tmp_path / family)))
    export([published(backbone, **SOFT)], tmp_path / "out", "tokens")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    new = torch.tensor(recipes(tmp_path / "out")[0]["suppress_token_ids"])
    assert new.tolist() == model.generation_config.suppress_tokens
    hidden = torch.randn(200, 32, generator=torch.Generator().manual_seed(0)) * 3
    with torch.no_grad():
        logits = model.get_output_embeddings()(hidden)
    assert not torch.isin(logits.argmax(-1), new).any()
    assert (logits.softmax(-1)[:, new] < 1 / logits.shape[1]).all()
    assert not model.config.tie_word_embeddings


def test_padded_vocabularies_give_their_free_rows_to_the_prompt(tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path / "padded")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    rows = len(model.get_input_embeddings().weight)
    model.resize_token_embeddings(rows + 64)
    model.save_pretrained(folder)
    backbone = backbone_at(str(folder))
    prompt = published(backbone, **SOFT)
    export([prompt], tmp_path / "out", "tokens")
    assert recipes(tmp_path / "out")[0]["suppress_token_ids"][0] == rows
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").vocab_size == rows + 64
    assert answers(tmp_path / "out", 0, [{"text": TEXTS[0]}]) == prompt.prompt.predict(TEXTS[:1], backbone)


def test_a_classifier_says_which_texts_its_labels_are(llama: Backbone, tmp_path: Path) -> None:
    prompt = published(llama, objective="classify", labels={"It is in depot 1": "the first depot"}, evaluate={}, **SOFT)
    export([prompt], tmp_path / "out", "tokens")
    labels = recipes(tmp_path / "out")[0]["labels"]
    assert labels == {"It is in depot 0": "It is in depot 0", "It is in depot 1": "the first depot", "It is in depot 2": "It is in depot 2"}


@pytest.mark.parametrize(
    ("parts", "finding"),
    [
        (
            {**SOFT, "template": "{{ soft(2) }} br{{ text }}\n"},
            "export t@1 as tokens: its tokenizer cuts the whole text otherwise than the parts it was tuned on, at token 2. Put a space",
        ),
        ({}, "export t@1 as tokens: it is a deep prefix, keys and values in every layer, not input embeddings. Use peft, kv or folder"),
        ({**SOFT, "template": "{% if text %}Say {{ text }}{% endif %}\n"}, "template: has conditions, loops or filters"),
    ],
)
def test_what_no_text_can_say_is_refused(llama: Backbone, tmp_path: Path, parts: dict[str, Any], finding: str) -> None:
    prompt = published(llama, **parts)
    with pytest.raises(PromptmillError, match=finding.replace("(", r"\(")):
        export([prompt], tmp_path / "out", "tokens")
    assert list(tmp_path.iterdir()) == []


def test_prompts_of_two_bases_do_not_fit_one_vocabulary(prompts: list[Published], tmp_path: Path) -> None:
    other = published(backbone_at(str(save_tiny("qwen2", tmp_path / "other"))), version=3, **SOFT)
    with pytest.raises(PromptmillError, match=r"export t@3 as tokens: its base other \(float32\) is not that of t@1, tiny-llama"):
        export([prompts[0], other], tmp_path / "out", "tokens")
    with pytest.raises(PromptmillError, match="t@1 is named twice"):
        export([prompts[0], prompts[0]], tmp_path / "out", "tokens")


def test_a_base_that_is_no_gguf_file_becomes_none(prompts: list[Published], tmp_path: Path) -> None:
    with pytest.raises(PromptmillError, match=r"its base is no GGUF file\. Export without --gguf"):
        export(prompts, tmp_path / "out", "tokens", gguf=True)
