"""The Triton kernels' index arithmetic against the dense mask: nothing visible is missed, nothing "full" is hidden."""

import pytest
import torch
from attention_cases import forests
from hypothesis import given, settings
from hypothesis import strategies as st
from prefix_attention import PromptForest
from prefix_attention.reference import visibility

pytest.importorskip("triton")
from prefix_attention.fused.configs import config
from prefix_attention.fused.plan import active_window, key_plan, query_plan

WINDOWS = st.sampled_from([None, 0, 1, 7])


@settings(deadline=None, max_examples=80)
@given(forests(longest=20), st.sampled_from([(16, 16), (32, 16), (16, 32)]), WINDOWS)
def test_a_tile_meets_every_block_that_it_sees_a_key_of(forest, sizes, window):
    rows, keys = sizes
    if not forest.num_tokens:
        return
    window = active_window(forest, window)
    visible, offset = visibility(forest, window), forest.num_prefix_tokens
    plan = query_plan(forest, rows, keys, window)
    met = torch.zeros_like(visible)
    assert sorted(plan.tile_order.tolist()) == list(range(plan.tiles))
    for tile in range(plan.tiles):
        tile_rows = slice(tile * rows, (tile + 1) * rows)
        for visit in range(plan.prefix_begin[tile], plan.prefix_begin[tile + 1]):
            begin, end, *_ = plan.prefix_blocks[plan.prefix_visits[visit]].tolist()
            met[tile_rows, begin:end] = True
        for visit in range(plan.full_begin[tile], plan.full_begin[tile + 1]):
            begin = offset + int(plan.full_visits[visit]) * keys
            assert visible[tile_rows, begin : begin + keys].all()
            assert begin + keys <= visible.shape[1]
            assert not met[tile_rows, begin : begin + keys].any()
            met[tile_rows, begin : begin + keys] = True
        for visit in range(plan.masked_begin[tile], plan.masked_begin[tile + 1]):
            begin = offset + int(plan.masked_visits[visit]) * keys
            assert not met[tile_rows, begin : begin + keys].any()
            met[tile_rows, begin : begin + keys] = True
    assert not (visible & ~met).any()


@settings(deadline=None, max_examples=80)
@given(forests(longest=20), st.sampled_from([(16, 16), (32, 16), (16, 32)]), WINDOWS)
def test_the_work_list_covers_every_key_and_every_row_that_sees_it_once(forest, sizes, window):
    rows, keys = sizes
    if not forest.num_tokens:
        return
    window = active_window(forest, window)
    visible, offset = visibility(forest, window), forest.num_prefix_tokens
    plan = key_plan(forest, rows, keys, window)
    met = torch.zeros_like(visible)
    for works, shift, count in ((plan.prefixes, 0, offset), (plan.tokens, offset, forest.num_tokens)):
        written = torch.zeros(count, dtype=torch.int64)
        for begin, end, first, full_first, full_last, last, slot, *_ in works.work.tolist():
            assert first <= full_first <= full_last <= last
            block = slice(shift + begin, shift + end)
            assert not met[first * rows : last * rows, block].any()
            met[first * rows : last * rows, block] = True
            assert visible[full_first * rows : full_last * rows, block].all()
            if slot < 0:
                written[begin:end] += 1
        for begin, end, first_slot, last_slot in works.split.tolist():
            slots = sorted(item[6] for item in works.work.tolist() if item[0] == begin)
            assert slots == list(range(first_slot, last_slot))
            written[begin:end] += 1
        assert (written == 1).all()
    assert not (visible & ~met).any()


def test_a_shared_prompt_is_split_by_the_shape_alone():
    forest = PromptForest.from_segments([40] * 400, [-1] * 400, prefix_lengths=[128])
    plan = key_plan(forest, 64, 128, None)
    assert len(plan.prefixes.split) == 1
    assert plan.prefixes.items > 20
    assert torch.equal(plan.prefixes.work, key_plan(forest.to("cpu"), 64, 128, None).prefixes.work)


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942", "gfx950", "sm_999"])
@pytest.mark.parametrize("kernel", ["forward", "dq", "dkv"])
def test_every_card_has_tiles_for_every_head_dimension(arch, kernel):
    for element_bytes in (2, 4):
        for dim in (16, 64, 96, 128, 256):
            tiling = config(arch, kernel, element_bytes, dim)
            assert tiling.rows % 16 == tiling.keys % 16 == 0
