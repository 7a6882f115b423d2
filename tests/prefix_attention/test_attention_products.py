"""The CPU backend's plans against the dense mask: every visible pair is in one product, in sizes that pay."""

import pytest
import torch
from attention_cases import forests
from hypothesis import given, settings
from hypothesis import strategies as st
from prefix_attention import PromptForest, cpu_plan
from prefix_attention.cpu_plan import Plan, plan_of
from prefix_attention.reference import visibility

HEADS, KV_HEADS = 6, 2


def pairs_of(plan: Plan, rows: int, keys: int) -> torch.Tensor:
    """int [S, P + S]: how often each row meets each key unhidden."""
    met = torch.zeros(rows, keys, dtype=torch.int64)
    for stage in plan:
        for product in stage.products:
            bias = plan.bias(product).expand(product.tiles, -1, -1, -1, -1)[:, 0, :, 0]
            clear = product.keys.shape[1] - bias.shape[1]
            seen = torch.cat([torch.ones(product.tiles, clear, bias.shape[2], dtype=torch.bool), bias == 0], dim=1)
            seen &= product.real_rows[:, None]
            tile, key, row = seen.nonzero(as_tuple=True)
            met.index_put_((product.rows[tile, row], product.keys[tile, key]), torch.ones_like(tile), accumulate=True)
    return met


@settings(deadline=None, max_examples=150)
@given(forests(longest=40), st.sampled_from([None, None, 0, 1, 7]), st.sampled_from([500, 1 << 20]))
def test_every_row_meets_every_key_that_it_sees_once(forest, window, scores):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_plan, "_SCORES", scores)
        patch.setattr(cpu_plan, "_STAGE", 4 * scores)
        plan = plan_of(forest, window, HEADS, KV_HEADS)
        met = pairs_of(plan, forest.num_tokens, forest.num_prefix_tokens + forest.num_tokens)
    assert torch.equal(met, visibility(forest, window).long())


@settings(deadline=None, max_examples=60)
@given(forests(longest=40))
def test_stages_follow_one_another_and_their_indices_undo_each_other(forest):
    plan, end = plan_of(forest, None, HEADS, KV_HEADS), 0
    for stage in plan:
        assert stage.rows.start == end
        end = stage.rows.stop
        assert torch.equal(stage.group_rows[stage.places], torch.arange((end - stage.rows.start) * HEADS))
        keys = torch.cat([product.group_keys for product in stage.products])
        ids = torch.arange(len(stage.copy_ends) - 1) if stage.key_ids is None else stage.key_ids
        assert torch.equal(keys[stage.copies], ids.repeat_interleave(stage.copy_ends.diff()))
    assert end == forest.num_tokens


def work(plan: Plan) -> tuple[int, int, int]:
    """Scores of one head, copies of keys of one head, products."""
    products = [product for stage in plan for product in stage.products]
    return (
        sum(product.rows.numel() * product.keys.shape[1] for product in products),
        sum(product.keys.numel() for product in products),
        len(products),
    )


def test_padding_and_products_stay_few():
    lengths = [8 + 7 * i % 41 for i in range(64)]
    forest = PromptForest.from_segments(lengths, [-1] * 64, prefix_lengths=[100])
    scores, _, products = work(plan_of(forest, None, 8, 2))
    assert scores < 1.2 * sum(n * (100 + n) for n in lengths)
    assert products < 12


def test_labels_of_one_text_share_a_tile():
    forest = PromptForest.from_segments([30, *[3] * 10] * 16, [i for t in range(16) for i in (-1, *[11 * t] * 10)])
    _, copies, products = work(plan_of(forest, None, 8, 2))
    assert copies == 16 * (30 + 60)
    assert products == 2


def test_short_trees_behind_a_long_prefix_share_copies_of_it():
    forest = PromptForest.from_segments([1] * 500, [-1] * 500, prefix_lengths=[1000])
    _, copies, _ = work(plan_of(forest, None, 8, 2))
    assert copies < 20 * 500 + 10 * 1000


def test_work_and_indices_grow_with_the_tokens():
    def size(examples: int) -> tuple[int, int]:
        forest = PromptForest.from_segments([9, 30, 12] * examples, [-1] * (3 * examples), prefix_lengths=[50])
        plan = plan_of(forest, None, 8, 2)
        kept = sum(x.group_rows.numel() + x.copies.numel() + sum(p.group_keys.numel() for p in x.products) for x in plan)
        return work(plan)[0], kept

    scores, kept = size(20)
    more_scores, more_kept = size(400)
    assert more_scores < 22 * scores
    assert more_kept < 22 * kept


def test_indices_that_would_outgrow_the_rows_are_not_kept():
    plan = plan_of(PromptForest.from_segments([9_000], [-1]), None, 2, 2)
    stages, again = list(plan), list(plan)
    assert stages[0] is again[0]
    assert stages[-1] is not again[-1]
