"""Packed generation writes what a plain greedy loop of transformers writes for each input alone."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest
import torch
from encoder_decoders import FAMILIES, alone, plain_encoder_decoder, save_encoder_decoder
from helpers import a_task, backbone_at, plain_model, random_ids, random_prefix, save_tiny, wordless_tokenizer
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig

from prompt_core.backbone import Backbone, EncoderDecoder
from prompt_core.backbone.locate import locate
from prompt_core.continuous import TextBatch, write
from prompt_core.encoding import TaskEncoding
from prompt_core.generation import Sampling, generate
from prompt_core.prompts import DeepPrefix, PromptState, SoftPrompt
from prompt_core.task import BackboneSpec
from prompt_core.writing import Text

CHAT = [{"system": "Answer in one short sentence."}, {"user": "{{ text }}"}]
QUESTIONS = ["What is the capital of France?", "Name three colours of a traffic light.", "Why is the sky blue? Explain it to a child."]


def test_smollm2_answers_as_it_does_in_transformers(smollm2: Backbone) -> None:
    encoding = TaskEncoding(a_task("smollm2", template=CHAT, objective="generate"), smollm2)
    root = smollm2.embed(torch.tensor(encoding.root))
    inputs = [encoding.encode({"text": question}).input for question in QUESTIONS]
    found = generate(smollm2, PromptState.of(smollm2, root=encoding.root), inputs, 16, encoding.ends)
    model = plain_model(locate(BackboneSpec(name="smollm2"), Path()).source)
    end = encoding.end_of_turn[0]
    for ids, answer in zip(inputs, found, strict=True):
        rows = torch.cat([root, model.get_input_embeddings()(torch.tensor(ids))])[None]
        expected = model.generate(
            inputs_embeds=rows,
            attention_mask=torch.ones(rows.shape[:2]),
            max_new_tokens=16,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=end,
        )[0].tolist()
        assert answer == (expected[: expected.index(end)] if end in expected else expected)
    assert "Paris" in encoding.decode(found[0])


def test_rows_that_end_early_leave_and_the_rest_goes_on(llama: Backbone) -> None:
    keys, values = random_prefix(llama, 5)
    prefix = PromptState.of(llama, keys=keys, values=values)
    inputs = [ids.tolist() for ids in random_ids(3, 8, 1, 8, 5)]
    free = generate(llama, prefix, inputs, 10, ())
    assert [len(ids) for ids in free] == [10] * 5
    end = (free[0][2], free[3][5])
    stopped = generate(llama, prefix, inputs, 10, [(token,) for token in end])
    for whole, part in zip(free, stopped, strict=True):
        assert part == whole[: next((i for i, token in enumerate(whole) if token in end), 10)]


def test_a_run_of_tokens_ends_a_text_where_one_of_them_alone_does_not(llama: Backbone) -> None:
    keys, values = random_prefix(llama, 5)
    prefix = PromptState.of(llama, keys=keys, values=values)
    inputs = [ids.tolist() for ids in random_ids(3, 8, 1, 8, 5)]
    free = generate(llama, prefix, inputs, 10, ())
    run = free[0][2:4]
    stopped = generate(llama, prefix, inputs, 10, [run])
    for whole, part in zip(free, stopped, strict=True):
        assert part == whole[: next((i for i in range(9) if whole[i : i + 2] == run), 10)]
    text, lone = (Text(prefix, inputs[0], 10, ends) for ends in ([run], ()))
    write(llama, [text, lone])
    assert text.ended and text.ending == 2 and not lone.ended
    ended = Text(prefix, inputs[0], len(text.ids) + 2, ())  # as many tokens, without an end
    write(llama, [ended])
    assert text.mean_log_chance == pytest.approx(ended.mean_log_chance)


def test_a_closing_token_ends_a_text_and_stays(llama: Backbone) -> None:
    keys, values = random_prefix(llama, 5)
    prefix = PromptState.of(llama, keys=keys, values=values)
    inputs = [ids.tolist() for ids in random_ids(3, 8, 1, 8, 5)]
    free = generate(llama, prefix, inputs, 10, ())
    last = free[0][3]
    for whole, part in zip(free, generate(llama, prefix, inputs, 10, (), closing=frozenset({last})), strict=True):
        assert part == whole[: whole.index(last) + 1 if last in whole else 10]
    text = Text(prefix, inputs[0], 10, (), frozenset({last}))
    cut = Text(prefix, inputs[0], free[0].index(last) + 1, ())
    write(llama, [text, cut])
    assert text.ended and not cut.ended and text.ids == cut.ids and text.mean_log_chance == pytest.approx(cut.mean_log_chance)


def test_an_input_is_answered_the_same_alone_and_among_others(llama: Backbone) -> None:
    keys, values = random_prefix(llama, 5)
    prefix = PromptState.of(llama, keys=keys, values=values)
    inputs = [ids.tolist() for ids in random_ids(*(1 + i % 60 for i in range(270)))]  # more than are generated at a time
    seen: list[tuple[int, int]] = []
    together = generate(llama, prefix, inputs, 3, (), lambda done, total: seen.append((done, total)))
    assert [generate(llama, prefix, [ids], 3, ())[0] for ids in inputs[::30]] == together[::30]
    assert seen == [(256, 270), (270, 270)]


def test_draws_are_those_of_the_seeds_whatever_stands_beside(llama: Backbone) -> None:
    keys, values = random_prefix(llama, 5)
    prefix = PromptState.of(llama, keys=keys, values=values)
    inputs = [ids.tolist() for ids in random_ids(*range(1, 41))]
    sampling = Sampling(range(40), temperature=1.5, top_p=0.9)
    together = generate(llama, prefix, inputs, 6, (), sampling=sampling)
    assert generate(llama, prefix, inputs, 6, (), sampling=sampling) == together
    for i in range(0, 40, 10):
        assert generate(llama, prefix, [inputs[i]], 6, (), sampling=Sampling([i], 1.5, 0.9))[0] == together[i]
    others = generate(llama, prefix, inputs, 6, (), sampling=Sampling(range(100, 140), 1.5, 0.9))
    assert sum(a == b for a, b in zip(together, others, strict=True)) < 4


def test_draws_follow_the_models_chances() -> None:
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0])
    numbers = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000  # evenly over [0, 1)
    drawn = Sampling((), temperature=2.0).draw(logits.expand(4000, 4), numbers)
    expected = (logits.double() / 2).softmax(-1)
    assert torch.allclose(drawn.bincount(minlength=4) / 4000, expected.float(), atol=1e-3)
    likely = Sampling((), temperature=2.0, top_p=0.6).draw(logits.expand(4000, 4), numbers)  # the two likeliest hold .45 + .28
    assert torch.allclose(
        likely.bincount(minlength=4) / 4000, (expected * torch.tensor([1, 0, 1, 0]) / expected[[0, 2]].sum()).float(), atol=1e-3
    )
    assert (Sampling((), temperature=1.0, top_p=1e-9).draw(logits.expand(4000, 4), numbers) == 0).all()


def test_it_generates_without_a_prompt_and_from_no_inputs(llama: Backbone) -> None:
    assert len(generate(llama, PromptState.of(llama), [[5, 6]], 2, ())[0]) == 2
    assert generate(llama, PromptState.of(llama), [], 2, ()) == []


@pytest.mark.parametrize("ends", [0, 1, 2])
@pytest.mark.parametrize("beams", [2, 4])
def test_a_beam_search_writes_what_that_of_transformers_writes(llama_folder: Path, llama: Backbone, beams: int, ends: int) -> None:
    model, (root,) = plain_model(llama_folder), random_ids(5, seed=9)
    prompt, inputs = PromptState.of(llama, root=root.tolist()), [ids.tolist() for ids in random_ids(3, 12, 1, 7)]
    free = generate(llama, prompt, inputs, 9, (), beams=beams)
    stops = [free[0][4], free[2][2]][:ends]
    found = generate(llama, prompt, inputs, 9, [(token,) for token in stops], beams=beams)
    for ids, answer in zip(inputs, found, strict=True):
        whole = torch.tensor([[*root.tolist(), *ids]])
        settings = {"max_new_tokens": 9, "num_beams": beams, "do_sample": False, "eos_token_id": stops or None, "pad_token_id": 0}
        expected = model.generate(whole, attention_mask=torch.ones_like(whole), **settings)[0, whole.shape[1] :].tolist()
        cut = min((expected.index(token) for token in stops if token in expected), default=9)
        assert answer == expected[:cut]
    greedy = generate(llama, prompt, inputs, 9, [(token,) for token in stops])
    assert found != greedy


def test_beams_beside_other_texts_write_what_they_write_alone(llama: Backbone) -> None:
    prefixes = [PromptState.of(llama, keys=keys, values=values) for keys, values in (random_prefix(llama, 5, seed) for seed in (1, 2))]
    inputs = [ids.tolist() for ids in random_ids(*(1 + i % 40 for i in range(150)))]
    end = generate(llama, prefixes[0], [inputs[7]], 6, (), beams=3)[0][3]

    def asked() -> list[Text]:
        drawn = Sampling(range(150), temperature=1.5)
        return [
            Text(prefixes[i % 2], ids, 2 + i % 5, [(end,)], beams=1 + i % 4)
            if i % 3
            else Text(prefixes[i % 2], ids, 2 + i % 5, [(end,)], sampling=drawn, uniforms=drawn.uniforms(i, 6))
            for i, ids in enumerate(inputs)
        ]

    together, alone = asked(), asked()[::11]
    write(llama, together)
    for text in alone:
        write(llama, [text])
    for text, other in zip(alone, together[::11], strict=True):
        assert (text.ids, text.ended, text.ending) == (other.ids, other.ended, other.ending)
        assert text.mean_log_chance == pytest.approx(other.mean_log_chance, abs=1e-4)
    assert any(text.ended for text in together if text.beams > 1)


def test_a_search_finds_a_text_at_least_as_likely_as_the_likeliest_token_after_token(llama: Backbone) -> None:
    prompt, inputs = PromptState.of(llama), [ids.tolist() for ids in random_ids(*range(2, 30))]
    greedy, searched = ([Text(prompt, ids, 6, (), beams=beams) for ids in inputs] for beams in (1, 8))
    write(llama, [*greedy, *searched])
    gains = [text.mean_log_chance - other.mean_log_chance for text, other in zip(searched, greedy, strict=True)]
    assert sum(gains) > 0 and sum(gain > -1e-5 for gain in gains) >= 26  # no certainty: a beam can be pushed out
    text = searched[0]
    ids = list(text.ids)
    text.start_over()
    assert text.ids == [] and text.log_chance == 0.0
    write(llama, [text])
    assert text.ids == ids


def test_a_search_that_is_given_up_leaves_its_rows(llama: Backbone) -> None:
    batch, prompt = TextBatch.of(llama), PromptState.of(llama)
    texts = [Text(prompt, [5, 6, 7], 8, (), beams=3), Text(prompt, [8, 9], 8, ())]
    batch.admit(deque(texts))
    batch.step()
    texts[0].cancelled = True
    assert batch.step() == [texts[0]] and batch.texts == [texts[1]] and batch.rows == 1
    while batch.texts:
        batch.step()
    assert texts[1].ids == generate(llama, prompt, [[8, 9]], 8, ())[0]


@pytest.mark.parametrize("kind", ["soft", "deep"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_decoder_writes_what_a_plain_loop_writes(tmp_path: Path, family: str, kind: str) -> None:
    folder = save_encoder_decoder(family, tmp_path / family)
    backbone, model = backbone_at(str(folder)), plain_encoder_decoder(folder)
    assert isinstance(backbone, EncoderDecoder)
    inputs = [ids.tolist() for ids in random_ids(3, 12, 1, 7, vocabulary=200)]
    rows, prefix = backbone.embed(random_ids(4, seed=3, vocabulary=200)[0]), random_prefix(backbone, 4)
    prompt = (SoftPrompt(backbone, rows) if kind == "soft" else DeepPrefix(backbone, *prefix)).state()
    expected = []
    for ids in inputs:
        written = [backbone.decoder_start]
        for _ in range(8):
            states = alone(model, ids, written, **({"rows": rows} if kind == "soft" else {"prefix": prefix}))[1]
            hidden = states[-1] * (32**-0.5 if family == "t5" else 1)
            written.append(int(model.lm_head(hidden).argmax()))
        expected.append(written[1:])
    assert generate(backbone, prompt, inputs, 8, ()) == expected
    end = expected[1][3]
    stopped = [ids[: ids.index(end)] if end in ids else ids for ids in expected]
    assert generate(backbone, prompt, inputs, 8, [(end,)]) == stopped


def test_an_encoder_decoder_writes_what_transformers_writes_greedily_and_by_beam_search(tmp_path: Path) -> None:
    folder = save_encoder_decoder("bart", tmp_path / "bart")
    backbone, model = backbone_at(str(folder)), plain_encoder_decoder(folder)
    (ids,) = random_ids(9, vocabulary=200)
    settings = GenerationConfig(decoder_start_token_id=2, max_new_tokens=8, do_sample=False, pad_token_id=0)
    expected = model.generate(input_ids=ids[None], attention_mask=torch.ones(1, 9), generation_config=settings)[0, 1:].tolist()
    assert generate(backbone, PromptState.of(backbone), [ids.tolist()], 8, [(2,)])[0] == [token for token in expected if token != 2]
    settings.update(num_beams=3, early_stopping=False)
    expected = model.generate(input_ids=ids[None], attention_mask=torch.ones(1, 9), generation_config=settings)[0, 1:].tolist()
    others = [other.tolist() for other in random_ids(4, 6, seed=5, vocabulary=200)]
    found = generate(backbone, PromptState.of(backbone), [ids.tolist(), *others], 8, [(2,)], beams=3)[0]
    assert found == [token for token in expected if token not in (0, 2)]


def test_an_encoder_decoder_stops_where_its_positions_end(tmp_path: Path) -> None:
    backbone = backbone_at(str(save_encoder_decoder("bart", tmp_path / "bart")))
    assert len(generate(backbone, PromptState.of(backbone), [[5, 6]], 100, ())[0]) == 64


def test_a_text_that_is_not_a_number_leaves_nothing_behind_for_the_next_one_on_its_row(tmp_path: Path) -> None:
    """As float16 models overflow on some inputs."""
    folder = save_tiny("llama", tmp_path / "m", wordless_tokenizer())
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][7] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    backbone = backbone_at(str(folder))
    batch, prompt = TextBatch.of(backbone), PromptState.of(backbone)
    broken, *others = [Text(prompt, ids, 6, ()) for ids in ([9, 8, 7, 6, 5, 4], [20, 30], [40, 50, 60, 70, 80])]
    expected = [generate(backbone, prompt, [text.input], 6, ())[0] for text in others]
    for group in ([broken], others):
        batch.admit(deque(group))
        while batch.texts:
            batch.step()
    assert [text.ids for text in others] == expected
