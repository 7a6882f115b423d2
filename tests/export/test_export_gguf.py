"""Prompts in a GGUF file: llama.cpp itself, given plain text, writes what the prompts write here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import torch
import xllamacpp
from export_builders import EVALUATION, recipes, text_of
from gguf import GGUFReader
from helpers import a_task, examples

from prompt_core.backbone import Backbone
from prompt_core.export import Published, export
from prompt_core.export.licence import base_of, licence_of
from prompt_core.tuning import tune

CHAT = [{"system": "You answer customers of a parcel carrier in one short sentence."}, {"user": "{{ text }}"}]
ROWS = [
    ("Where is my parcel?", "It is on its way, and it comes tomorrow."),
    ("The box was crushed.", "We are sorry, and we send a new one."),
    ("Can I change the address?", "You can change it until it leaves the depot."),
    ("I was charged twice.", "We are sorry, and we pay one of the two back."),
]
TEXTS = [
    "My parcel has not moved for three days.",
    "Can I collect it at the depot?",
    "The driver left it in the rain!",
    "How much is a parcel to Spain?",
    "What is the capital of France?",
    "I want my money back",
    "Is delivery on Sunday possible?",
    "Name three colours.",
    "The label came off, what now?",
    "Thanks, it arrived: great service.",
]


def tuned(backbone: Backbone, version: int, template: Any, **parts: Any) -> Published:
    tuning = {"steps": 3, "learning_rate": 0.01, "batch_examples": 4, "seed": version}
    task = a_task("smollm2", template=template, objective="generate", prompt={"kind": "soft"}, tune=tuning, **parts)
    return Published(tune(task, examples(*ROWS), None, backbone), version, EVALUATION)


@pytest.fixture(scope="module")
def prompts(smollm2: Backbone) -> list[Published]:
    """A prompt in place of the system message, and one whose soft tokens stand around the input."""
    inside = [{"user": "{{ soft(4) }} Customer: {{ text }} {{ soft(3) }}"}]
    settings = {"evaluate": {"max_new_tokens": 30}}
    return [tuned(smollm2, 1, CHAT, **settings), tuned(smollm2, 2, inside, **settings)]


def llama_cpp(folder: Path, number: int, texts: list[str]) -> list[str]:
    """What llama.cpp writes, at temperature 0."""
    settings = xllamacpp.CommonParams()
    settings.model.path = str(folder / "model.gguf")
    settings.n_ctx, settings.n_parallel, settings.cpuparams.n_threads = 1024, 1, 1
    server = xllamacpp.Server(settings)
    recipe, found = recipes(folder)[number], []
    for text in texts:
        request = {"prompt": text_of(recipe, text=text), "n_predict": recipe["max_new_tokens"], "temperature": 0}
        answer = server.handle_completions(request)
        found.append(answer["content"].strip() if "content" in answer else answer["choices"][0]["text"].strip())
    return found


@pytest.mark.slow
def test_llama_cpp_with_f32_layers_writes_the_same_texts(smollm2: Backbone, prompts: list[Published], tmp_path: Path) -> None:
    export(prompts, tmp_path / "out", "tokens", gguf=True, layers="f32")
    for number, each in enumerate(prompts):
        texts = TEXTS if number == 0 else TEXTS[:3]
        assert llama_cpp(tmp_path / "out", number, texts) == each.prompt.predict(texts, smollm2)


@pytest.mark.slow
def test_quantised_layers_are_kept_byte_for_byte(smollm2: Backbone, prompts: list[Published], tmp_path: Path) -> None:
    export(prompts, tmp_path / "out", "tokens", gguf=True)
    file = base_of(prompts[0].prompt).weights
    assert file is not None
    before, after = ({t.name: t for t in GGUFReader(path).tensors} for path in (file, tmp_path / "out" / "model.gguf"))
    assert after.keys() - before.keys() == {"output.weight"}
    for name, tensor in before.items():
        if name != "token_embd.weight":
            assert tensor.tensor_type == after[name].tensor_type and (tensor.data == after[name].data).all()
    rows = torch.cat([each.prompt.tensors["embeddings"] for each in prompts])
    found = torch.tensor(after["token_embd.weight"].data[-len(rows) :].astype("float32"))
    assert torch.allclose(found, rows, rtol=1e-3, atol=1e-6)
    assert licence_of(prompts[0].prompt) == "apache-2.0"
    assert "licence apache-2.0" in (tmp_path / "out" / "README.md").read_text()
    ours = prompts[0].prompt.predict(TEXTS[:4], smollm2)
    assert sacrebleu.corpus_chrf(llama_cpp(tmp_path / "out", 0, TEXTS[:4]), [ours]).score > 50  # the layers round, the prompt holds
