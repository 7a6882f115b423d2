"""What a forest accepts, what it refuses, and that first/last mean what a walk along the paths says."""

import copy
import multiprocessing
import time

import pytest
import torch
from attention_cases import forests
from hypothesis import given, settings
from prefix_attention import PromptForest, prefix_attention
from prefix_attention.forest import forest_of
from prefix_attention.reference import visibility


def seen_by_walking(forest: PromptForest) -> torch.Tensor:
    """bool [S, P + S], slowly: for each row collect the keys of its path."""
    segments, offset = forest.segments, forest.num_prefix_tokens
    starts, parents = segments.starts.tolist(), segments.parents.tolist()
    seen = torch.zeros(forest.num_tokens, offset + forest.num_tokens, dtype=torch.bool)
    for segment, parent in enumerate(parents):
        for row in range(starts[segment], starts[segment + 1]):
            end = starts[segment + 1] if forest.bidirectional else row + 1
            seen[row, offset + starts[segment] : offset + end] = True
            ancestor = parent
            while ancestor >= 0:
                seen[row, offset + starts[ancestor] : offset + starts[ancestor + 1]] = True
                ancestor = parents[ancestor]
            prefix = int(segments.prefixes[segment])
            if prefix >= 0:
                seen[row, segments.prefix_starts[prefix] : segments.prefix_starts[prefix + 1]] = True
    return seen


@settings(deadline=None, max_examples=60)
@given(forests(longest=6))
def test_two_integers_per_key_say_what_a_walk_along_the_path_says(forest):
    assert torch.equal(visibility(forest), seen_by_walking(forest))


def test_positions_count_along_the_path():
    causal = PromptForest.from_segments([3, 2, 2, 1], [-1, 0, 1, 0], prefix_lengths=[4])
    assert causal.position_ids.tolist() == [4, 5, 6, 7, 8, 9, 10, 7]
    encoder = PromptForest.from_segments([3, 2, 2, 1], [-1, 0, 1, 0], bidirectional=True, prefix_lengths=[4])
    assert encoder.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 3]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"lengths": [1, 2], "parents": [-1]}, "parents has 1 entries, lengths has 2"),
        ({"lengths": [1, -2], "parents": [-1, 0]}, r"lengths\[1\] is -2"),
        ({"lengths": [1, 2.5], "parents": [-1, 0]}, "lengths must be a sequence of integers"),
        ({"lengths": [1, 1], "parents": [-1, 1]}, r"parents\[1\] is 1"),
        ({"lengths": [1, 1], "parents": [1, -1]}, r"parents\[0\] is 1"),
        ({"lengths": [1, 1, 1], "parents": [-1, -1, 0]}, "depth first"),
        ({"lengths": [1], "parents": [-2]}, r"parents\[0\] is -2"),
        ({"lengths": [1], "parents": [-1], "prefix_lengths": [-1]}, r"prefix_lengths\[0\] is -1"),
        ({"lengths": [1], "parents": [-1], "prefix_lengths": [2], "prefixes": [1]}, r"prefixes\[0\] is 1"),
        ({"lengths": [1], "parents": [-1], "prefix_lengths": [2], "prefixes": []}, "prefixes has 0 entries"),
        ({"lengths": [1], "parents": [-1], "prefix_lengths": [2, 2]}, "prefixes is missing"),
        (
            {"lengths": [1] * 3, "parents": [-1] * 3, "prefix_lengths": [2, 2], "prefixes": [0, 1, 0]},
            r"prefixes\[2\] is 0.*side by side",
        ),
        (
            {"lengths": [1] * 3, "parents": [-1] * 3, "prefix_lengths": [2], "prefixes": [0, -1, 0]},
            r"prefixes\[2\] is 0.*side by side",
        ),
    ],
)
def test_a_forest_that_cannot_be_is_refused_by_name(arguments, complaint):
    with pytest.raises(ValueError, match=complaint):
        PromptForest.from_segments(**arguments)


def test_the_prefix_of_a_segment_below_a_root_is_ignored():
    given_below = PromptForest.from_segments([2, 3], [-1, 0], prefix_lengths=[2], prefixes=[-1, 0])
    assert given_below.prefix_last.tolist() == [0, 0]


def test_an_empty_forest_gives_an_empty_result():
    forest = PromptForest.from_segments([], [])
    empty = torch.empty(0, 2, 4)
    assert prefix_attention(empty, empty, empty, forest).shape == (0, 2, 4)


def test_a_hundred_thousand_segments_are_laid_out_and_attended_in_seconds():
    generator = torch.Generator().manual_seed(0)
    count = 100_000
    lengths = torch.randint(0, 4, (count,), generator=generator).tolist()
    nested = [-1 if index % 3 == 0 else index - index % 3 for index in range(count)]  # a root and its two children
    start = time.perf_counter()
    forest = PromptForest.from_segments(lengths, nested, prefix_lengths=[3])
    assert time.perf_counter() - start < 1.5
    q = torch.randn(forest.num_tokens, 1, 4, generator=generator)
    prefix = torch.randn(3, 1, 4, generator=generator)
    out = prefix_attention(q, q, q, forest, prefix, prefix)
    some = PromptForest.from_segments(lengths[:30], nested[:30], prefix_lengths=[3])
    rows = slice(0, some.num_tokens)
    expected = prefix_attention(q[rows], q[rows], q[rows], some, prefix, prefix, backend="reference")
    torch.testing.assert_close(out[rows], expected, atol=1e-5, rtol=1e-5)


def test_a_layout_describes_its_forest_completely():
    forest = PromptForest.from_segments([3, 0, 2], [-1, 0, -1], True, [2, 5], [1, -1, -1])
    layout = forest.layout.clone()
    layout[0] = 1 << 60  # a forest that is gone
    rebuilt = forest_of(layout, torch.device("cpu"))
    assert rebuilt is not forest
    for name in ("position_ids", "first", "last", "prefix_first", "prefix_last", "starts"):
        assert torch.equal(getattr(rebuilt, name), getattr(forest, name))
    assert forest_of(forest.layout, torch.device("cpu")) is forest


def sent(forest):
    """The forest as another process receives it."""
    near, far = multiprocessing.Pipe()
    near.send(forest)
    return far.recv()


@pytest.mark.parametrize("copied", [copy.deepcopy, sent])
def test_a_copy_is_a_forest_of_its_own_also_in_a_process_where_its_handle_is_taken(copied):
    forest = PromptForest.from_segments([3, 2], [-1, -1], prefix_lengths=[2])
    other = copied(forest)
    assert forest_of(other.layout, torch.device("cpu")) is other
    assert torch.equal(other.layout[1:], forest.layout[1:]) and torch.equal(other.last, forest.last)
