"""Every promised family: a packed forest is exactly what the model's own forward makes of each sequence alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import (
    CAUSAL,
    ENCODERS,
    assert_equal_to_rounding,
    backbone_at,
    behind_cache,
    behind_rows,
    encoder_behind_cache,
    plain_model,
    random_ids,
    random_prefix,
    save_tiny,
    wordless_tokenizer,
)
from prefix_attention import PrefixTiles, PromptForest
from torch import Tensor

from prompt_core.backbone import Backbone, DecodePass, ForestPass

# Longer than the windows of 4; a lone token; and a parent with two children.
LENGTHS, PARENTS = (9, 1, 6, 3, 5), (-1, -1, -1, 2, 2)
PATHS = ((0,), (1,), (2, 3), (2, 4))
TEXTS = random_ids(*LENGTHS, vocabulary=250)


@dataclass(frozen=True)
class Family:
    """A tiny model of a family as Promptmill attaches it, and as transformers runs it."""

    backbone: Backbone
    own: Any

    def packed(self, rows: Tensor | None = None, prefix: tuple[Tensor, Tensor] | None = None) -> list[Tensor]:
        """Last hidden states of each path of TEXTS in one packed row, behind soft rows or behind a deep prefix."""
        backbone, causal = self.backbone, self.backbone.causal
        lengths, parents = list(LENGTHS), list(PARENTS) if causal else [-1] * len(LENGTHS)
        embeddings = [backbone.embed(torch.cat(TEXTS))]
        if rows is not None:
            lengths, parents, embeddings = [len(rows), *lengths], [-1, *(p + 1 for p in parents)], [rows, *embeddings]
        prefix_lengths = [] if prefix is None else [prefix[0].shape[1]]
        forest = PromptForest.from_segments(lengths, parents, not causal, prefix_lengths)
        states = backbone.hidden_states(torch.cat(embeddings), forest.position_ids, ForestPass(forest, *(prefix or ())))
        segments = states.split(lengths)[0 if rows is None else 1 :]
        return [torch.cat([segments[i] for i in path]) for path in PATHS] if causal else list(segments)


def with_room(states: Tensor, tokens: int) -> Tensor:
    """The cache of one row [1, Hkv, n + tokens, D] that starts with these keys or values [n, Hkv, D]."""
    return torch.nn.functional.pad(states.transpose(0, 1)[None], (0, 0, 0, tokens)).contiguous()


def paths() -> list[Tensor]:
    return [torch.cat([TEXTS[i] for i in path]) for path in PATHS]


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = save_tiny(request.param, tmp_path_factory.mktemp("families") / request.param, wordless_tokenizer())
    backbone = backbone_at(str(folder))
    return Family(backbone, plain_model(folder, causal=backbone.causal))


causal_families = pytest.mark.parametrize("family", CAUSAL, indirect=True)
encoders = pytest.mark.parametrize("family", ENCODERS, indirect=True)


@causal_families
def test_a_forest_is_each_of_its_paths_alone(family: Family) -> None:
    expected = [family.own.base_model(input_ids=ids[None]).last_hidden_state[0] for ids in paths()]
    assert_equal_to_rounding(family.packed(), expected)


@causal_families
def test_a_forest_behind_soft_rows_is_each_path_behind_them(family: Family) -> None:
    rows = family.backbone.embed(random_ids(3, seed=3, vocabulary=250)[0])
    assert_equal_to_rounding(family.packed(rows), [behind_rows(family.own, rows, ids) for ids in paths()])


@causal_families
def test_a_forest_behind_a_deep_prefix_is_each_path_behind_that_cache(family: Family) -> None:
    prefix = random_prefix(family.backbone, 3)
    assert_equal_to_rounding(family.packed(prefix=prefix), [behind_cache(family.own, *prefix, ids) for ids in paths()])


@causal_families
def test_token_by_token_gives_what_the_whole_text_gives(family: Family) -> None:
    backbone, ids = family.backbone, TEXTS[0]
    keys, values = random_prefix(backbone, 3)
    captured: list[tuple[Tensor, Tensor]] = []
    forest = PromptForest.from_segments([6], [-1], prefix_lengths=[3])
    backbone.hidden_states(backbone.embed(ids[:6]), forest.position_ids, ForestPass(forest, keys, values, captured))
    cache = [(with_room(k, 3), with_room(v, 3)) for k, v in captured]
    shared = [states.transpose(1, 2)[:, None] for states in (keys, values)]
    found = []
    for length in range(6, 9):
        lengths = torch.tensor([length])
        step = DecodePass(cache, lengths, *shared, PrefixTiles.of([0], [3]))
        found.append(backbone.hidden_states(backbone.embed(ids[lengths]), step.positions, step))
    assert_equal_to_rounding(found, [behind_cache(family.own, keys, values, ids)[6:]])


@causal_families
def test_logits_are_the_models_own(family: Family) -> None:
    ids = TEXTS[0]
    states = family.own.base_model(input_ids=ids[None]).last_hidden_state[0]
    assert_equal_to_rounding(family.backbone.logits(states), family.own(input_ids=ids[None]).logits[0])


@encoders
def test_packed_texts_are_each_text_alone(family: Family) -> None:
    assert_equal_to_rounding(family.packed(), [family.own(input_ids=ids[None]).last_hidden_state[0] for ids in TEXTS])


@encoders
def test_packed_texts_behind_a_deep_prefix_are_each_behind_it(family: Family) -> None:
    prefix = random_prefix(family.backbone, 3)
    assert_equal_to_rounding(family.packed(prefix=prefix), [encoder_behind_cache(family.own, *prefix, ids) for ids in TEXTS])


@pytest.mark.parametrize("family", CAUSAL | ENCODERS, indirect=True)
def test_a_prompt_can_be_shaped_after_it(family: Family) -> None:
    backbone, everything = family.backbone, torch.arange(256)
    assert torch.equal(backbone.vocabulary, backbone.embed(everything))
    assert torch.equal(backbone.vocabulary, family.own.get_input_embeddings()(everything))
    assert backbone.hidden_size == family.packed()[0].shape[-1]
