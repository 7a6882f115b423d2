"""Packed generation writes what a plain greedy loop of transformers writes for each input alone."""

from __future__ import annotations

from pathlib import Path

import torch
from helpers import a_task, plain_model, random_ids, random_prefix

from prompt_core.backbone import Backbone
from prompt_core.backbone.locate import locate
from prompt_core.encoding import TaskEncoding
from prompt_core.generation import generate
from prompt_core.prompts import PromptState
from prompt_core.task import BackboneSpec

CHAT = [{"system": "Answer in one short sentence."}, {"user": "{{ text }}"}]
QUESTIONS = ["What is the capital of France?", "Name three colours of a traffic light.", "Why is the sky blue? Explain it to a child."]


def test_smollm2_answers_as_it_does_in_transformers(smollm2: Backbone) -> None:
    encoding = TaskEncoding(a_task("smollm2", template=CHAT, objective="generate"), smollm2)
    root = smollm2.embed(torch.tensor(encoding.root))
    inputs = [encoding.encode({"text": question}).input for question in QUESTIONS]
    found = generate(smollm2, PromptState.of(smollm2, root=encoding.root), inputs, 16, encoding.end_of_turn)
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
    free = generate(llama, prefix, inputs, 10, end=())
    assert [len(ids) for ids in free] == [10] * 5
    end = (free[0][2], free[3][5])
    stopped = generate(llama, prefix, inputs, 10, end)
    for whole, part in zip(free, stopped, strict=True):
        assert part == whole[: next((i for i, token in enumerate(whole) if token in end), 10)]


def test_an_input_is_answered_the_same_alone_and_among_others(llama: Backbone) -> None:
    keys, values = random_prefix(llama, 5)
    prefix = PromptState.of(llama, keys=keys, values=values)
    inputs = [ids.tolist() for ids in random_ids(*range(1, 101))]  # more than are generated at a time
    seen: list[tuple[int, int]] = []
    together = generate(llama, prefix, inputs, 3, (), lambda done, total: seen.append((done, total)))
    assert [generate(llama, prefix, [ids], 3, ())[0] for ids in inputs[::10]] == together[::10]
    assert seen == [(96, 100), (100, 100)]


def test_it_generates_without_a_prompt_and_from_no_inputs(llama: Backbone) -> None:
    assert len(generate(llama, PromptState.of(llama), [[5, 6]], 2, ())[0]) == 2
    assert generate(llama, PromptState.of(llama), [], 2, ()) == []
