"""Label words tuned over the vocabulary: the loss of writing the label, scores as ever."""

from __future__ import annotations

from dataclasses import replace

import torch
from helpers import assert_equal_to_rounding, random_ids, random_prefix
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_core.backbone import Backbone
from prompt_core.encoded import Encoded
from prompt_core.prompts import DeepPrefix, Tree, hidden_states
from prompt_core.tuning.objective import Generation, LabelWords, Objective
from prompt_core.tuning.vocabulary import VocabularyWords

WORDS = [tuple(ids.tolist()) for ids in random_ids(2, 4, 1, seed=9)]


def batch_of(targets: list[int]) -> list[Encoded]:
    lengths = [1 + 3 * number % 7 for number in range(len(targets))]
    return [Encoded(tuple(ids.tolist()), (t,), False) for ids, t in zip(random_ids(*lengths), targets, strict=True)]


def loss_and_gradients(backbone: Backbone, objective: Objective, batch: list[Encoded]) -> list[torch.Tensor]:
    prompt = DeepPrefix(backbone, *random_prefix(backbone, 4))
    (states,) = hidden_states(backbone, [Tree(prompt.state(), *objective.segments(batch))])
    assert len(states) == sum(map(objective.weight, batch))  # no row but those that predict a target's token
    loss = objective.loss(states, batch)
    loss.backward()
    return [loss.detach()[None], *(p.grad.flatten() for p in prompt.parameters() if p.grad is not None)]


@given(st.lists(st.integers(0, 2), min_size=1, max_size=8), st.sampled_from([0.0, 0.2]))
@settings(max_examples=15, deadline=None)
def test_the_loss_is_that_of_generating_the_right_labels_tokens(llama: Backbone, targets: list[int], smoothing: float) -> None:
    batch, objective = batch_of(targets), VocabularyWords(llama, WORDS, smoothing=smoothing)
    written = [replace(example, target=WORDS[example.target[0]]) for example in batch]
    found, expected = loss_and_gradients(llama, objective, batch), loss_and_gradients(llama, Generation(llama, smoothing), written)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [objective.weight(example) for example in batch] == [len(WORDS[target]) for target in targets]


def test_scores_are_those_of_label_words_and_need_no_target(llama: Backbone) -> None:
    prompt, inputs = DeepPrefix(llama, *random_prefix(llama, 4)).state(), [replace(e, target=()) for e in batch_of([0, 1, 2, 0])]
    with torch.no_grad():
        found, expected = (kind(llama, WORDS).scores_behind(prompt, inputs) for kind in (VocabularyWords, LabelWords))
    assert_equal_to_rounding(found, expected)
    assert [VocabularyWords(llama, WORDS).scoring_tokens(e) for e in inputs] == [LabelWords(llama, WORDS).tokens(e) for e in inputs]
