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
    given = {name: prompt.pop(name) for name in ("labels", "demonstrations") if name in prompt}
    task = a_task(template=template, prompt=prompt, tune={"max_tokens": 64})
    encoding = TaskEncoding(task, backbone)
    return starting_prompt(task, encoding, backbone, torch.Generator().manual_seed(seed), **given), encoding


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


def test_a_soft_prompt_starts_from_the_text_the_labels_or_the_examples_that_the_task_names(llama: Backbone) -> None:
    tokenizer = llama.tokenizer
    given, _ = start(llama, kind="soft", start="text", text="Be brief.")
    assert torch.equal(given.state().rows, llama.embed(torch.tensor(tokenizer("Be brief.").input_ids)))
    labels, _ = start(llama, kind="soft", start="labels", tokens=3, labels=["late parcel", "broken box"])
    assert torch.equal(labels.state().rows, llama.embed(torch.tensor(tokenizer("late parcel\nbroken box").input_ids[-3:])))
    solved, encoding = start(llama, kind="soft", start="demonstrations", demonstrations=[({"text": "No news"}, "late")])
    assert torch.equal(solved.state().rows, llama.embed(torch.tensor(encoding.root_with_demonstrations([({"text": "No news"}, "late")]))))


def test_random_rows_have_the_scale_of_the_vocabulary(smollm2: Backbone) -> None:
    rows = start(smollm2, kind="soft", start="random", tokens=64)[0].state().rows
    assert float(rows.std()) == pytest.approx(float(smollm2.vocabulary.std()), rel=0.1)


def test_random_keys_and_values_have_the_scale_of_real_ones_in_each_layer(smollm2: Backbone) -> None:
    found = start(smollm2, kind="deep", start="random", tokens=64)[0].state()
    real = lower(smollm2, PromptState.of(smollm2, root=range(1000, 1064)))
    for drawn, states in ((found.keys, real.keys), (found.values, real.values)):
        ratio = drawn.flatten(1).std(1) / states.flatten(1).std(1)
        assert float(ratio.min()) > 0.5 and float(ratio.max()) < 2


def test_zero_keys_and_values_start_a_deep_prompt_alone(llama: Backbone) -> None:
    state = start(llama, kind="deep", start="zero", tokens=5)[0].state()
    assert state.keys.shape[1] == 5 and not state.keys.any() and not state.values.any()
    with pytest.raises(PromptmillError, match="start: zero is for kind: deep"):
        start(llama, kind="soft", start="zero")


def test_a_frozen_sink_is_no_parameter_and_stays(llama: Backbone) -> None:
    prompt, _ = start(llama, kind="deep", sink=True)
    before = prompt.state().keys.detach().clone()
    assert sum(p.numel() for p in prompt.parameters()) == 2 * (before.numel() - before[:, :1].numel())
    for parameter in prompt.parameters():
        parameter.data.add_(1)
    after = prompt.state().keys
    assert torch.equal(after[:, :1], before[:, :1]) and torch.equal(after[:, 1:], before[:, 1:] + 1)


@pytest.mark.parametrize(
    "prompt", [{"kind": "soft", "network": "mlp"}, {"kind": "soft", "network": "lstm"}, {"kind": "deep", "network": "mlp"}]
)
def test_a_network_starts_where_the_prompt_does_and_moves_all_but_a_sink(llama: Backbone, prompt: dict[str, Any]) -> None:
    plain, _ = start(llama, kind=prompt["kind"])
    sink = prompt["kind"] == "deep"
    made, _ = start(llama, **prompt, hidden=8, sink=sink)
    expected, found = plain.state(), made.state()
    assert torch.equal(found.rows, expected.rows) and torch.equal(found.keys, expected.keys)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1)
    moved = made.state()
    assert not torch.equal(moved.rows if not sink else moved.keys, expected.rows if not sink else expected.keys)
    assert torch.equal(moved.keys[:, :1], expected.keys[:, :1])


def test_a_network_in_front_of_a_deep_prompt_leaves_the_soft_tokens_of_the_examples_to_be_tuned(llama: Backbone) -> None:
    prompt, _ = start(llama, "Say of {{ text }}{{ soft(2) }}", kind="deep", network="mlp", hidden=8)
    rows = prompt.state().rows
    tuned = [parameter for parameter in prompt.parameters() if parameter.requires_grad and parameter.shape == rows.shape]
    assert len(tuned) == 1 and torch.equal(tuned[0], rows)


def test_soft_tokens_of_a_template_are_what_is_tuned(llama: Backbone) -> None:
    prompt, encoding = start(llama, "Say {{ soft(3) }} of {{ text }}{{ soft(2) }}", kind="soft")
    state = prompt.state()
    assert state.rows.shape[0] == encoding.soft_tokens == 5
    assert state.root == encoding.root and [token for token in state.root if token < 0] == [-1, -2, -3]
    deep, encoding = start(llama, "Say of {{ text }}{{ soft(2) }}", kind="deep")
    assert deep.state().rows.shape[0] == 2 and deep.state().keys.shape[1] == len(encoding.root)


@pytest.mark.parametrize(
    ("template", "prompt", "finding"),
    [
        ("A {{ soft(2) }} {{ text }}", {"kind": "deep"}, "task t: prompt.kind: deep, but the template has soft(n) before the first field"),
        ("{{ text }}{{ soft(2) }}", {"kind": "deep"}, "task t: prompt.kind: deep, but the template starts with a field"),
        ("A {{ soft(2) }} {{ text }}", {"kind": "soft", "tokens": 3}, "task t: prompt.tokens: 3, but the template says soft(n)"),
        ("A {{ soft(2) }} {{ text }}", {"kind": "soft", "start": "root"}, "task t: prompt.start: root, but the template says soft(n)"),
        ("A {{ text }}", {"kind": "soft", "start": "labels"}, "task t: prompt.start: labels, but the objective is classify"),
        ("A {{ text }}", {"kind": "soft", "start": "text"}, "start: text and the field text go together"),
        ("A {{ text }}", {"kind": "soft", "start_from": "x"}, "start: prompt and the field start_from go together"),
        ("A {{ text }}", {"kind": "deep", "network": "lstm"}, "network: lstm is for kind: soft"),
    ],
)
def test_what_does_not_fit_is_refused(llama: Backbone, template: str, prompt: dict[str, Any], finding: str) -> None:
    with pytest.raises(PromptmillError, match=re.escape(finding)):
        start(llama, template, **prompt)
