"""The CPU backend against float64: forward, every gradient, determinism, independence, the long routes."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from attention_cases import assert_within_the_error_rule, cases, make_case
from hypothesis import given, settings
from hypothesis import strategies as st
from prefix_attention import PromptForest, cpu, cpu_plan, prefix_attention
from prefix_attention.reference import dense_attention


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Whatever is not written stays NaN, in results and in the buffers that live between calls."""
    empty = torch.empty
    cpu._scratch._buffers.clear()

    def poison(*shape, **options):
        x = empty(*shape, **options)
        return x.fill_(torch.nan) if x.is_floating_point() else x

    monkeypatch.setattr(torch, "empty", poison)


def of_cpu(**arguments):
    return prefix_attention(**arguments, backend="cpu")


@settings(deadline=None, max_examples=100)
@given(cases(), st.sampled_from([0, cpu._WEIGHTS]))
def test_random_forests_in_float64_with_weights_kept_or_computed_again(case, kept):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "_WEIGHTS", kept)
        assert_within_the_error_rule(case, "cpu", torch.float64)


@settings(deadline=None, max_examples=25)
@given(cases())
def test_random_forests_in_float32(case):
    assert_within_the_error_rule(case, "cpu", torch.float32)


@settings(deadline=None, max_examples=25)
@given(cases(dims=(16, 24)))
def test_random_forests_in_bfloat16(case):
    assert_within_the_error_rule(case, "cpu", torch.bfloat16)


@settings(deadline=None, max_examples=10)
@given(cases(dims=(16,)))
def test_random_forests_in_float16(case):
    assert_within_the_error_rule(case, "cpu", torch.float16)


FORESTS = {
    "a prompt as a root segment": lambda: PromptForest.from_segments([17] + [40, 61, 33] * 4, [-1] + [0] * 12),
    "many examples behind one prefix": lambda: PromptForest.from_segments([9, 30, 12] * 20, [-1] * 60, prefix_lengths=[50]),
    "an encoder behind a prefix": lambda: PromptForest.from_segments([9, 30, 12] * 8, [-1] * 24, True, [16]),
    "three levels with short labels": lambda: PromptForest.from_segments(
        [50] + [30, *[3] * 10] * 6, [-1] + [i for t in range(6) for i in (0, *[1 + 11 * t] * 10)]
    ),
    "four prompts": lambda: PromptForest.from_segments([20] * 16, [-1] * 16, False, [8] * 4, [i // 4 for i in range(16)]),
    "a segment of several chunks": lambda: PromptForest.from_segments([300, 290, 40], [-1, 0, 0], prefix_lengths=[5]),
    "an encoder of several chunks": lambda: PromptForest.from_segments([300, 290], [-1, -1], True, [5]),
    "a prompt too long to copy": lambda: PromptForest.from_segments([30, 20, 5], [-1] * 3, prefix_lengths=[1100]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("forest", FORESTS)
def test_the_shapes_of_tuning_and_scoring(forest, dtype):
    assert_within_the_error_rule(make_case(FORESTS[forest](), 3, 3, 16), "cpu", dtype)


@pytest.mark.parametrize("options", [{"window": 50}, {"softcap": 2.0}, {"window": 150, "scale": 0.5}])
def test_several_chunks_with_a_window_or_a_softcap(options):
    case = make_case(FORESTS["a segment of several chunks"](), 1, 2, 8, options, sinks=True)
    assert_within_the_error_rule(case, "cpu", torch.float32)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_stages_add_up_to_one(monkeypatch, dtype, bidirectional):
    monkeypatch.setattr(cpu_plan, "_STAGE", 4096)
    monkeypatch.setattr(cpu_plan, "_SCORES", 4096)
    forest = PromptForest.from_segments([100, 70, 20], [-1, 0, 0], bidirectional, [9])
    case = make_case(forest, 2, 3, 16, sinks=True)
    assert_within_the_error_rule(case, "cpu", dtype)
    assert len(cpu_plan.plan_of(forest, None, 6, 2)) > 4


@pytest.mark.parametrize("forest", FORESTS)
def test_indices_that_are_made_anew_give_the_same_bits(monkeypatch, forest):
    case = make_case(FORESTS[forest](), 3, 3, 16).to(torch.float32)
    expected = case.results(of_cpu)
    monkeypatch.setattr(cpu_plan, "_KEPT", 0)
    again = make_case(FORESTS[forest](), 3, 3, 16).to(torch.float32).results(of_cpu)
    assert all(torch.equal(again[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("forest", FORESTS)
def test_weights_that_were_kept_are_those_that_backward_would_compute(monkeypatch, forest, dtype):
    case = make_case(FORESTS[forest](), 3, 3, 16).to(dtype)
    kept = case.results(of_cpu)
    monkeypatch.setattr(cpu, "_WEIGHTS", 0)
    again = case.results(of_cpu)
    assert torch.equal(kept["out"], again["out"])
    rounding = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for name, gradient in again.items():
        assert (kept[name] - gradient).norm() <= rounding * gradient.norm(), name


def test_weights_are_kept_for_a_backward_of_few_scores_only():
    def kept(forest, **options):
        case = make_case(forest, 2, 4, 16).to(torch.float32)
        out = of_cpu(forest=forest, **case.inputs, **options)
        return len(out.grad_fn.saved_tensors[5])

    short = PromptForest.from_segments([30] * 32, [-1] * 32, prefix_lengths=[100])
    assert 32 * 30 * 115 * 8 <= kept(short) <= cpu._WEIGHTS // 4
    assert kept(short, softcap=3.0) == 0  # whose slope needs the scores
    assert kept(PromptForest.from_segments([30] * 256, [-1] * 256, prefix_lengths=[100])) == 0
    without_gradients = [x.detach() for x in make_case(short, 2, 4, 16).inputs.values()]
    assert cpu.weights_to_keep(*without_gradients[:3], short, *without_gradients[3:], None, None) == 0


def test_threads_do_not_disturb_each_other():
    cases = [make_case(FORESTS[forest](), 3, 3, 16).to(torch.float32) for forest in FORESTS]
    expected = [case.results(of_cpu) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda case: case.results(of_cpu), cases * 3))
    for one, other in zip(found, expected * 3, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_gradients_agree_with_finite_differences():
    forest = PromptForest.from_segments([3, 2, 4, 0, 2], [-1, 0, 0, -1, -1], False, [2, 3], [0, -1, -1, 0, 1])
    case = make_case(forest, 1, 2, 3, sinks=True)
    for options in ({}, {"softcap": 1.5, "window": 4}):
        assert torch.autograd.gradcheck(
            lambda *inputs, options=options: of_cpu(forest=forest, **dict(zip(case.inputs, inputs, strict=True)), **options),
            tuple(case.inputs.values()),
        )


@pytest.mark.parametrize("forest", FORESTS)
def test_reruns_give_the_same_bits(forest):
    case = make_case(FORESTS[forest](), 3, 3, 16).to(torch.bfloat16)
    first, second = case.results(of_cpu), case.results(of_cpu)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_unrelated_tree_changes_nothing_but_rounding():
    lengths, parents = [8, 20, 13], [-1, 0, 0]
    alone = make_case(PromptForest.from_segments(lengths, parents), 2, 2, 16).to(torch.float32)
    beside = make_case(PromptForest.from_segments([*lengths, 30, 7], [*parents, -1, 3]), 2, 2, 16, seed=1).to(torch.float32)
    rows = alone.forest.num_tokens
    for name in ("q", "k", "v"):
        beside.inputs[name].data[:rows] = alone.inputs[name].data
        beside.inputs[name].data[rows:] *= 100
    beside.grad[:rows] = alone.grad
    here, there = alone.results(of_cpu), beside.results(of_cpu)
    for name in ("out", "q", "k", "v"):
        torch.testing.assert_close(there[name][:rows], here[name], atol=1e-5, rtol=1e-5)


def test_what_is_not_a_number_stays_in_its_tree():
    forest = PromptForest.from_segments([8, 20, 13, 9, 30], [-1, -1, -1, -1, -1], prefix_lengths=[4])
    case = make_case(forest, 2, 2, 16).to(torch.float32)
    case.inputs["k"].data[8:28] = torch.nan
    found = case.results(of_cpu)
    assert found["out"][8:28].isnan().all()
    for name in ("out", "q", "k", "v"):
        assert not torch.cat([found[name][:8], found[name][28:]]).isnan().any(), name


def test_only_asked_gradients_are_computed():
    case = make_case(FORESTS["four prompts"](), 1, 2, 8).to(torch.float32)
    expected = case.results(of_cpu)
    wanted = ("prefix_k", "prefix_v")
    inputs = {name: x.detach().requires_grad_(name in wanted) for name, x in case.inputs.items()}
    out = of_cpu(forest=case.forest, **inputs)
    grads = torch.autograd.grad(out, [inputs[name] for name in wanted], case.grad)
    assert all(torch.equal(grad, expected[name]) for grad, name in zip(grads, wanted, strict=True))


def test_rows_that_see_nothing_are_zero_and_pass_no_gradient():
    case = make_case(PromptForest.from_segments([5, 7], [-1, 0], prefix_lengths=[3]), 1, 2, 8, {"window": 0}, sinks=True)
    assert all(not value.any() for value in case.results(of_cpu).values())
    assert all(not value.any() for value in case.results(dense_attention).values())


def test_views_of_any_strides_are_taken():
    case = make_case(FORESTS["four prompts"](), 2, 2, 16).to(torch.float32)
    expected = case.results(of_cpu)
    for name, x in case.inputs.items():
        case.inputs[name] = x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    case.grad = case.grad.transpose(0, 1).contiguous().transpose(0, 1)
    assert all(torch.equal(value, expected[name]) for name, value in case.results(of_cpu).items())
