"""A standing forest: whatever is loaded into it is computed as a forest of that batch alone, in memory that stays."""

import pytest
import torch
from attention_cases import forests
from hypothesis import given, settings
from hypothesis import strategies as st
from prefix_attention import PromptForest, StandingForest, prefix_attention
from prefix_attention.reference import visibility

BATCHES = [([40, *[12] * 12], [-1, *[0] * 12]), ([150, 20], [-1, 0]), ([7], [-1]), ([100, 0, 60], [-1, 0, 1])]


def states(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, heads, 16, generator=generator, requires_grad=True) for heads in (4, 2, 2)]


def results(forest, tensors):
    out = prefix_attention(*tensors, forest)
    return [out, *torch.autograd.grad(out.square().sum(), tensors)]


def test_each_batch_gets_what_it_gets_alone():
    standing = StandingForest.of(200, 14)
    for seed, batch in enumerate(BATCHES):
        standing.load(*batch)
        tensors = states(200, seed)
        rows = sum(batch[0])
        alone = results(PromptForest.from_segments(*batch), [x[:rows].detach().requires_grad_() for x in tensors])
        for found, expected in zip(results(standing, tensors), alone, strict=True):
            assert torch.allclose(found[:rows], expected, atol=1e-5)


def test_it_is_the_forest_of_the_batch_and_its_padding_behind_prefixes():
    standing = StandingForest.of(30, 6, prefix_lengths=[3, 5])
    standing.load([4, 8, 9], [-1, 0, -1], prefixes=[0, 0, 1])
    whole = PromptForest.from_segments([4, 8, 9, 3, 3, 3], [-1, 0, -1, -1, -1, -1], False, [3, 5], [0, 0, 1, -1, -1, -1])
    assert torch.equal(visibility(standing), visibility(whole))
    assert torch.equal(standing.position_ids, whole.position_ids)


@pytest.mark.parametrize(("lengths", "size"), [([10, 11], (20, 5)), ([1, 1, 1], (20, 3))])
def test_what_does_not_fit_is_refused(lengths, size):
    with pytest.raises(ValueError, match="this forest has room for"):
        StandingForest.of(*size).load(lengths, [-1] * len(lengths))


@settings(deadline=None, max_examples=60)
@given(st.lists(forests(longest=20), min_size=2, max_size=3), st.sampled_from([(16, 16), (32, 16), (16, 32)]), st.sampled_from([None, 7]))
def test_plans_of_the_kernels_stay_where_they_are_and_say_what_the_batchs_own_plans_say(batches, sizes, window):
    pytest.importorskip("triton")
    from prefix_attention.fused.plan import key_plan, query_plan

    batches = [batch for batch in batches if not batch.num_prefix_tokens and not batch.bidirectional]
    standing = StandingForest.of(256, 12)
    queries, keys = query_plan(standing, *sizes, window), key_plan(standing, *sizes, window)
    places = [x.data_ptr() for x in (queries.full_visits, queries.masked_visits, keys.tokens.work, keys.tokens.split)]
    for batch in batches:
        standing.load(batch.segments.lengths.tolist(), batch.segments.parents.tolist())
        own = query_plan(standing.host, *sizes, window), key_plan(standing.host, *sizes, window)
        assert query_plan(standing, *sizes, window) is queries
        for name in ("tile_order", "full_begin", "masked_begin"):
            assert torch.equal(getattr(queries, name), getattr(own[0], name))
        for name in ("full_visits", "masked_visits"):
            visits = getattr(own[0], name)
            assert torch.equal(getattr(queries, name)[: len(visits)], visits)
        work, rest = keys.tokens.work[: own[1].tokens.items], keys.tokens.work[own[1].tokens.items :]
        assert torch.equal(work, own[1].tokens.work)
        assert (rest[:, 6] == -1).all()
        assert not rest[:, :6].any()
        assert own[1].tokens.slots <= keys.tokens.slots
        split = keys.tokens.split
        assert torch.equal(split[: len(own[1].tokens.split)], own[1].tokens.split)
        assert not split[len(own[1].tokens.split) :].any()
    assert places == [x.data_ptr() for x in (queries.full_visits, queries.masked_visits, keys.tokens.work, keys.tokens.split)]
