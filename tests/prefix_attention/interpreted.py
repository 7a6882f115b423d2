"""Run by test_attention_triton.py in a process of its own: the Triton kernels under the interpreter, on the CPU."""

import pytest
import torch
from attention_cases import assert_within_the_error_rule, cases, make_case
from hypothesis import given, settings
from prefix_attention import PromptForest, StandingForest, prefix_attention
from prefix_attention.fused import launch
from prefix_attention.fused.configs import Config
from prefix_attention.fused.plan import key_plan


def of_triton(**arguments):
    return prefix_attention(**arguments, backend="triton")


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Whatever a kernel does not write stays NaN."""
    torch.set_num_threads(1)
    empty_like, new_empty = torch.empty_like, torch.Tensor.new_empty
    monkeypatch.setattr(torch, "empty_like", lambda x, **options: _poison(empty_like(x, **options)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *shape, **options: _poison(new_empty(x, *shape, **options)))


def _poison(x):
    return x.fill_(torch.nan) if x.is_floating_point() else x


@settings(deadline=None, max_examples=8, database=None)
@given(cases(dims=(16, 24), longest=30, segments=6))
def test_random_forests_in_float32(case):
    assert_within_the_error_rule(case, "triton", torch.float32)


@settings(deadline=None, max_examples=4, database=None)
@given(cases(dims=(16,), longest=30, segments=6))
def test_random_forests_in_float16(case):
    assert_within_the_error_rule(case, "triton", torch.float16)


def test_bfloat16_with_products_in_float32():
    forest = PromptForest.from_segments([20, 30, 9], [-1, 0, 0], prefix_lengths=[7])
    assert_within_the_error_rule(make_case(forest, 1, 2, 16), "triton", torch.bfloat16)


FORESTS = {
    "a prompt whose gradient is split": PromptForest.from_segments([12] * 14, [-1] * 14, prefix_lengths=[40]),
    "a root whose gradient is split": PromptForest.from_segments([40, *[12] * 12], [-1, *[0] * 12]),
    "a long segment with full blocks": PromptForest.from_segments([150, 20], [-1, 0]),
    "an encoder behind two prefixes": PromptForest.from_segments([50, 60, 30], [-1] * 3, True, [5, 33], [0, 1, 1]),
}


@pytest.mark.parametrize("forest", FORESTS)
def test_split_blocks_and_full_blocks(monkeypatch, forest):
    monkeypatch.setattr("prefix_attention.fused.plan._MIN_CHUNK", 32)
    monkeypatch.setattr("prefix_attention.fused.plan._ITEMS", 8)
    case = make_case(FORESTS[forest], 1, 2, 16, sinks=True)
    assert_within_the_error_rule(case, "triton", torch.float32)
    if "split" in forest:
        works = key_plan(FORESTS[forest], 32, 32, None)
        assert works.tokens.slots + works.prefixes.slots > 0


def test_reruns_give_the_same_bits():
    case = make_case(FORESTS["a root whose gradient is split"], 1, 2, 16).to(torch.float32)
    first, second = case.results(of_triton), case.results(of_triton)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_unrelated_tree_changes_no_bit_on_the_same_tiles():
    lengths, parents = [24, 20, 20], [-1, 0, 0]  # 64 rows: the second tree starts on a tile of its own
    alone = make_case(PromptForest.from_segments(lengths, parents), 1, 2, 16).to(torch.float32)
    beside = make_case(PromptForest.from_segments([*lengths, 30, 7], [*parents, -1, 3]), 1, 2, 16, seed=1).to(torch.float32)
    for name in ("q", "k", "v"):
        beside.inputs[name].data[:64] = alone.inputs[name].data
    beside.grad[:64] = alone.grad
    here, there = alone.results(of_triton), beside.results(of_triton)
    for name in ("out", "q", "k", "v"):
        assert torch.equal(there[name][:64], here[name]), name


def test_tiles_of_other_shapes_agree(monkeypatch):
    case = make_case(FORESTS["an encoder behind two prefixes"], 1, 2, 16, {"window": 20})
    for tiling in (Config(16, 64, 1, 1), Config(64, 16, 1, 1)):
        monkeypatch.setattr(launch, "config", lambda *_, tiling=tiling: tiling)
        assert_within_the_error_rule(case, "triton", torch.float32)


@pytest.mark.parametrize("forest", [name for name in FORESTS if "encoder" not in name])
def test_a_standing_forest_runs_on_what_was_loaded_last(monkeypatch, forest):
    monkeypatch.setattr("prefix_attention.fused.plan._MIN_CHUNK", 32)
    monkeypatch.setattr("prefix_attention.fused.plan._ITEMS", 8)
    segments = FORESTS[forest].segments
    standing = StandingForest.of(200, 16, prefix_lengths=segments.prefix_starts.diff().tolist())
    before = make_case(standing, 1, 2, 16, sinks=True).to(torch.float32)
    before.results(of_triton)  # plans are made for padding alone
    standing.load(segments.lengths.tolist(), segments.parents.tolist())
    assert_within_the_error_rule(make_case(standing, 1, 2, 16, sinks=True), "triton", torch.float32)
