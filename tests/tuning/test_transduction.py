"""Tuning, keeping and using prompts of encoder-decoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_decoders import FAMILIES, alone, plain_encoder_decoder, save_encoder_decoder
from helpers import a_task, assert_equal_to_rounding, backbone_at, examples

from prompt_core.artifact import TunedPrompt
from prompt_core.backbone import EncoderDecoder
from prompt_core.encoded import Encoded
from prompt_core.errors import PromptmillError
from prompt_core.prompts import PromptState, SoftPrompt, Tree, hidden_states
from prompt_core.tuning import tune, tune_fleet
from prompt_core.tuning.objective import Transduction

TRAIN = examples(*[(f"The {word} is {kind}", kind) for word in ("parcel", "letter", "door", "street") for kind in ("late", "broken")])
VALIDATION = examples(("My box is late", "late"), ("My box is broken", "broken"))
KINDS: tuple[dict[str, Any], ...] = (
    {"kind": "soft"},
    {"kind": "soft", "tokens": 5, "start": "random", "network": "mlp"},
    {"kind": "deep"},
    {"kind": "deep", "tokens": 3, "start": "random"},
)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder_decoder(request.param, tmp_path_factory.mktemp("seq2seq") / request.param)


@pytest.fixture
def backbone(folder: Path) -> EncoderDecoder:
    found = backbone_at(str(folder))
    assert isinstance(found, EncoderDecoder)
    return found


def a_writing_task(folder: Path, steps: int = 4, **parts: Any) -> Any:
    settings = {"steps": steps, "batch_examples": 4, "validate_every": 2, "max_tokens": 40, "learning_rate": 0.1}
    parts = {"objective": "generate", "template": "Sort this : {{ text }} Kind :", "tune": settings, **parts}
    return a_task(folder, **parts)


def test_the_loss_is_that_of_each_target_alone(backbone: EncoderDecoder, folder: Path) -> None:
    batch = [Encoded((20, 21, 22), (30, 2), False), Encoded((23,), (31, 32, 33, 2), False)]
    rows, objective, model = backbone.embed(torch.tensor([40, 41])), Transduction(backbone), plain_encoder_decoder(folder)
    (states,) = hidden_states(backbone, [Tree(SoftPrompt(backbone, rows).state(), *objective.segments(batch))])
    expected = torch.tensor(0.0)
    for e in batch:
        embedded = torch.cat([rows, model.get_input_embeddings()(torch.tensor(e.input))])[None]
        labels = torch.tensor([e.target])  # transformers shifts them itself
        expected += model(inputs_embeds=embedded, labels=labels).loss * len(e.target)
    assert_equal_to_rounding(objective.loss(states, batch).detach(), expected)


@pytest.mark.parametrize("prompt", KINDS, ids=str)
def test_tuning_twice_gives_one_digest_and_lowers_the_loss(backbone: EncoderDecoder, folder: Path, prompt: dict[str, Any]) -> None:
    task = a_writing_task(folder, steps=8, prompt=prompt)
    one, other = (tune(task, TRAIN, VALIDATION, backbone) for _ in range(2))
    assert one.digest == other.digest
    assert min(one.manifest.tuning.train_loss[1:]) < one.manifest.tuning.train_loss[0]


def test_a_fleet_gives_what_each_task_gives_alone(backbone: EncoderDecoder, folder: Path) -> None:
    tasks = [a_writing_task(folder, name=f"t{i}", prompt=prompt) for i, prompt in enumerate(KINDS)]
    together = tune_fleet(tasks, [(TRAIN, VALIDATION)] * len(tasks), backbone)
    for task, found in zip(tasks, together, strict=True):
        assert isinstance(found, TunedPrompt)
        expected = tune(task, TRAIN, VALIDATION, backbone)
        for name, tensor in expected.tensors.items():
            assert_equal_to_rounding(found.tensors[name], tensor)


@pytest.mark.parametrize("kind", ["soft", "deep"])
def test_a_saved_prompt_predicts_what_it_predicted(backbone: EncoderDecoder, folder: Path, tmp_path: Path, kind: str) -> None:
    tuned = tune(a_writing_task(folder, prompt={"kind": kind}), TRAIN, VALIDATION, backbone)
    texts = ["The parcel is late", "box", "The very long letter of the driver is broken and late"]
    found = tuned.predict(texts, backbone)
    tuned.save(tmp_path / "prompt")
    loaded = TunedPrompt.load(tmp_path / "prompt")
    assert loaded.predict(texts, backbone) == found == [tuned.predict([text], backbone)[0] for text in texts]


def test_an_untuned_soft_prompt_is_the_text_it_starts_from(backbone: EncoderDecoder, folder: Path) -> None:
    root = backbone.tokenizer("Sort this :").input_ids[:-1]
    model, source = plain_encoder_decoder(folder), [20, 21, 2]
    (found,) = hidden_states(backbone, [Tree(SoftPrompt(backbone, backbone.embed(torch.tensor(root))).state(), [source])])
    assert_equal_to_rounding(found, alone(model, [*root, *source], [0])[0][len(root) :])
    (as_text,) = hidden_states(backbone, [Tree(PromptState.of(backbone, root=root), [source])])
    assert_equal_to_rounding(as_text, found)


def test_classification_is_refused_and_says_what_to_do_instead(backbone: EncoderDecoder, folder: Path) -> None:
    with pytest.raises(PromptmillError, match=r"objective: classify, but .* is an encoder-decoder. Use generate: it writes the label."):
        tune(a_writing_task(folder, objective="classify"), TRAIN, VALIDATION, backbone)


def test_a_prompt_too_long_for_the_positions_is_refused_before_it_is_tuned(tmp_path: Path) -> None:
    folder = save_encoder_decoder("bart", tmp_path / "bart")
    task = a_writing_task(folder, prompt={"kind": "soft", "tokens": 60})
    with pytest.raises(PromptmillError, match="a prompt of 60 tokens and an example of 7 need more than the 64 positions"):
        tune(task, TRAIN, VALIDATION, backbone_at(str(folder)))
