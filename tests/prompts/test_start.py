"""Where tuning starts: the root's own states, repeated or cut to the length that the task asks for, or random words."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from helpers import a_task, assert_equal_to_rounding, random_ids, states_behind

from prompt_core.backbone import Backbone
from prompt_core.encoding import TaskEncoding
from prompt_core.errors import PromptmillError
from prompt_core.prompts import Prompt, PromptState, SoftPrompt, lower, starting_prompt

INSTRUCTION = "Say what the customer wants: {{ text }}"


def start(backbone: Backbone, template: str = INSTRUCTION, seed: int = 0, **prompt: Any) -> tuple[Prompt, TaskEncoding]:
    task = a_task(template=template, prompt=prompt)
    encoding = TaskEncoding(task, backbone)
    return starting_prompt(task, encoding, backbone, torch.Generator().manual_seed(seed)), encoding


def test_a_soft_prompt_starts_as_the_roots_embeddings(llama: Backbone) -> None:
    prompt, encoding = start(llama, kind="soft")
    assert isinstance(prompt, SoftPrompt)
    assert torch.equal(prompt.embeddings, llama.embed(torch.tensor(encoding.root)))


def test_a_deep_prefix_starts_as_the_roots_keys_and_values(llama: Backbone) -> None:
    prompt, encoding = start(llama, kind="deep")
    texts = random_ids(4, 6)
    rows = SoftPrompt(llama, llama.embed(torch.tensor(encoding.root)))
    assert_equal_to_rounding(states_behind(llama, prompt, texts), states_behind(llama, rows, texts))


def test_another_length_repeats_the_root_and_keeps_its_end(llama: Backbone) -> None:
    prompt, encoding = start(llama, kind="soft", tokens=4)
    assert isinstance(prompt, SoftPrompt)
    assert torch.equal(prompt.embeddings, llama.embed(torch.tensor(encoding.root[-4:])))
    longer, _ = start(llama, kind="soft", tokens=len(encoding.root) + 2)
    assert isinstance(longer, SoftPrompt)
    assert torch.equal(longer.embeddings, llama.embed(torch.tensor((*encoding.root[-2:], *encoding.root))))


def test_without_a_root_it_starts_from_words_that_the_seed_draws(llama: Backbone) -> None:
    drawn = [start(llama, "{{ text }}", seed, kind="soft")[0].tensors()["embeddings"] for seed in (0, 0, 1)]
    assert drawn[0].shape == (16, llama.hidden_size)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_an_encoder_starts_with_keys_and_values_of_its_own_tokens(bert: Backbone) -> None:
    prompt, encoding = start(bert, kind="deep")
    assert torch.equal(prompt.tensors()["keys"], lower(bert, PromptState.of(bert, root=encoding.root)).keys)


def test_a_soft_prompt_for_an_encoder_is_refused(bert: Backbone) -> None:
    with pytest.raises(PromptmillError, match=r"task t: prompt.kind: soft, but tiny-bert is an encoder.* Use deep\."):
        start(bert, kind="soft")


def test_a_start_from_an_empty_root_is_refused(llama: Backbone) -> None:
    with pytest.raises(PromptmillError, match=re.escape("task t: prompt.start: root, but the template starts with a field. Use text")):
        start(llama, "{{ text }}", kind="soft", start="root")
