"""One decoding step against the dense reference: each row is a tree whose last query is the new one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prefix_attention import PrefixTiles, PromptForest, decode_attention
from prefix_attention.reference import dense_attention


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=9),
    prefixes=st.lists(st.integers(0, 6), min_size=4, max_size=4),
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2)]),
    window=st.sampled_from([None, 1, 4, 9]),
    softcap=st.sampled_from([None, 1.5]),
    with_sinks=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_a_step_equals_the_last_row_of_each_path(rows, prefixes, heads, window, softcap, with_sinks, dtype):
    (query_heads, kv_heads), dim, slots = heads, 8, 10
    rows = sorted(rows, key=lambda row: row[1])  # the reference wants trees of one prefix side by side
    lengths, owners = [length for length, _ in rows], [prefix for _, prefix in rows]
    generator = torch.Generator().manual_seed(sum(lengths) + sum(prefixes))
    batch = len(lengths)
    q = torch.randn(batch, query_heads, dim, generator=generator).to(dtype)
    cache = torch.randn(2, batch, kv_heads, slots, dim, generator=generator).to(dtype)
    shared = torch.randn(2, 4, kv_heads, 7, dim, generator=generator).to(dtype)
    sinks = torch.randn(query_heads, generator=generator).to(dtype) if with_sinks else None
    order = torch.randperm(batch, generator=generator)
    tiles = PrefixTiles.of([owners[i] for i in order.tolist()], prefixes)
    scores = {"scale": 0.5, "window": window, "softcap": softcap, "sinks": sinks}
    found = decode_attention(q[order], *cache[:, order], torch.tensor(lengths)[order], *shared, tiles, **scores)

    forest = PromptForest.from_segments(lengths, [-1] * batch, prefix_lengths=prefixes, prefixes=owners)
    k, v = (torch.cat([rows[b, :, :n].transpose(0, 1) for b, n in enumerate(lengths)]) for rows in cache)
    ahead = [torch.cat([states[g, :, :n].transpose(0, 1) for g, n in enumerate(prefixes)]) for states in shared]
    last = torch.tensor(lengths).cumsum(0) - 1
    queries = q.new_zeros(len(k), query_heads, dim).index_copy(0, last, q)
    exact = dense_attention(queries, k, v, forest, *ahead, 0.5, window, softcap, sinks)[last][order]
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(found.double(), exact, atol=tolerance, rtol=tolerance)
    assert found.dtype == dtype


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60))
def test_a_plan_places_every_row_once_in_a_tile_of_its_prefix_and_wastes_at_most_half(prefixes):
    tiles = PrefixTiles.of(prefixes, [4] * 6)
    count, size = tiles.rows.shape
    owners = torch.arange(6) if tiles.owners is None else tiles.owners
    assert tiles.rows.flatten()[tiles.places].tolist() == list(range(len(prefixes)))
    assert owners[tiles.places // size].tolist() == prefixes
    assert count * size <= 2 * (len(prefixes) + len(set(prefixes)))


def test_a_row_without_keys_gives_zeros():
    q, cache = torch.randn(2, 2, 4), torch.full((2, 1, 3, 4), torch.nan)
    cache[1] = 1.0
    out = decode_attention(q, cache, cache.nan_to_num(), torch.tensor([0, 2]))
    assert not out[0].any()
    torch.testing.assert_close(out[1], torch.ones(2, 4))


def test_queries_may_lie_in_memory_as_they_like():
    packed, cache = torch.randn(3, 2, 4, 8), torch.randn(2, 3, 2, 5, 8)
    q = packed.transpose(1, 2)[:, :, 0]  # every other row of what a fused projection gives
    assert not q.is_contiguous()
    torch.testing.assert_close(
        decode_attention(q, *cache, torch.tensor([1, 5, 3])), decode_attention(q.contiguous(), *cache, torch.tensor([1, 5, 3]))
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"q": torch.zeros(2, 4)}, "q has shape"),
        ({"cache_k": torch.zeros(3, 2, 5, 8)}, "cache_k has shape"),
        ({"cache_v": torch.zeros(2, 2, 4, 8)}, "cache_v has shape"),
        ({"lengths": torch.zeros(3, dtype=torch.int64)}, "lengths has shape"),
        ({"prefix_k": torch.zeros(1, 2, 3, 8)}, "together"),
        (
            {"prefix_k": torch.zeros(1, 2, 3, 8), "prefix_v": torch.zeros(1, 2, 3, 8), "tiles": PrefixTiles.of([0, 0], [4])},
            "prefix_k has shape",
        ),
        (
            {"prefix_k": torch.zeros(1, 2, 3, 8), "prefix_v": torch.zeros(1, 2, 2, 8), "tiles": PrefixTiles.of([0, 0], [3])},
            "prefix_v has shape",
        ),
        ({"prefix_k": torch.zeros(1, 2, 3, 8), "prefix_v": torch.zeros(1, 2, 3, 8), "tiles": PrefixTiles.of([0], [3])}, "tiles.lengths"),
        ({"sinks": torch.zeros(3)}, "sinks has shape"),
        ({"q": torch.zeros(2, 3, 8)}, "multiple"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, complaint):
    arguments = {
        "q": torch.zeros(2, 4, 8),
        "cache_k": torch.zeros(2, 2, 5, 8),
        "cache_v": torch.zeros(2, 2, 5, 8),
        "lengths": torch.ones(2, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=complaint):
        decode_attention(**arguments | change)
