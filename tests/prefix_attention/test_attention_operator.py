"""A good citizen of torch: opcheck, torch.compile, checkpointing, inference mode, and errors that name the argument."""

import weakref

import pytest
import torch
from attention_cases import make_case
from prefix_attention import PromptForest, prefix_attention
from prefix_attention.cpu import weights_to_keep
from prefix_attention.operator import attention, attention_backward
from torch.utils.checkpoint import checkpoint


def small_case(dtype=torch.float32, sinks=True):
    forest = PromptForest.from_segments([3, 5, 7, 2], [-1, 0, 0, -1], prefix_lengths=[4], prefixes=[0, 0, 0, -1])
    return make_case(forest, 2, 2, 8, sinks=sinks).to(dtype)


@pytest.mark.parametrize(("sinks", "softcap"), [(True, 2.0), (False, None)])
def test_the_operators_pass_opcheck(sinks, softcap):
    case = small_case(sinks=sinks)
    q, k, v, prefix_k, prefix_v = list(case.inputs.values())[:5]
    sink = case.inputs.get("sinks")
    options = (0.3, 6, softcap, "cpu")
    kept = weights_to_keep(q, k, v, case.forest, prefix_k, prefix_v, 6, softcap)
    assert (kept > 0) == (softcap is None)
    torch.library.opcheck(attention, (q, k, v, case.forest.layout, prefix_k, prefix_v, sink, *options, kept))
    tensors = [None if x is None else x.detach() for x in (q, k, v, prefix_k, prefix_v, sink)]
    out, lse, weights = attention(*tensors[:3], case.forest.layout, *tensors[3:], *options, kept)
    saved = (case.grad, *tensors[:3], out, lse, weights, case.forest.layout, *tensors[3:])
    torch.library.opcheck(attention_backward, (*saved, *options, [True, False, True, True, True, sinks]))


def test_compiled_code_gives_the_same_for_every_batch():
    def step(forest, inputs):
        return prefix_attention(forest=forest, **inputs).sin()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for lengths in ([3, 5, 7, 2], [4, 4, 4, 5], [3, 5, 7, 2]):
        forest = PromptForest.from_segments(lengths, [-1, 0, 0, -1], prefix_lengths=[4], prefixes=[0, 0, 0, -1])
        case = make_case(forest, 2, 2, 8).to(torch.float32)
        found = case.results(lambda forest, **inputs: compiled(forest, inputs))
        expected = case.results(lambda forest, **inputs: step(forest, inputs))
        for name in expected:  # to rounding: compiled code keeps no weights
            torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=1e-5)


def test_gradient_checkpointing_gives_the_same_bits():
    case = small_case()
    expected = case.results(prefix_attention)
    found = case.results(lambda **arguments: checkpoint(prefix_attention, **arguments, use_reentrant=False))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_inference_mode_and_training_may_alternate():
    case = small_case(torch.bfloat16)
    expected = case.results(prefix_attention)
    with torch.inference_mode():
        out = prefix_attention(forest=case.forest, **case.inputs)
    assert torch.equal(out, expected["out"])
    assert all(torch.equal(value, expected[name]) for name, value in case.results(prefix_attention).items())


def test_backward_works_when_the_forest_is_gone():
    case = small_case()
    expected = case.results(prefix_attention)
    out = prefix_attention(forest=case.forest.to("cpu"), **case.inputs)
    layout = case.forest.layout.clone()
    layout[0] = 1 << 61
    q, k, v, prefix_k, prefix_v, sinks = case.inputs.values()
    kept = weights_to_keep(q, k, v, case.forest, prefix_k, prefix_v, None, None)
    out, *_ = attention(q, k, v, layout, prefix_k, prefix_v, sinks, 8**-0.5, None, None, "cpu", kept)
    grads = torch.autograd.grad(out, list(case.inputs.values()), case.grad)
    assert all(torch.equal(grad, expected[name]) for name, grad in zip(case.inputs, grads, strict=True))


def test_a_forest_lives_as_long_as_its_backward_may_come():
    case = small_case()
    forest = PromptForest.from_segments([3, 14], [-1, 0], prefix_lengths=[4])
    out = prefix_attention(forest=forest, **case.inputs)
    remembered = weakref.ref(forest)
    del forest
    assert remembered() is not None
    del out
    assert remembered() is None


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"q": torch.zeros(16, 4, 8)}, r"q has shape \[16, 4, 8\]: needed is \[17, Hq, D\]"),
        ({"q": torch.zeros(17, 4, 8, dtype=torch.int64)}, "q has dtype torch.int64"),
        ({"q": torch.zeros(17, 3, 8)}, "q has 3 heads and k has 2"),
        ({"k": torch.zeros(17, 2, 9)}, "k has shape"),
        ({"v": torch.zeros(17, 1, 8)}, r"v has shape \[17, 1, 8\]: needed is \[17, 2, 8\]"),
        ({"v": torch.zeros(17, 2, 8, dtype=torch.float64)}, "v has dtype torch.float64, q has torch.float32"),
        ({"k": torch.zeros(17, 2, 8, device="meta")}, "k is on meta"),
        ({"prefix_k": None}, "prefix_k is missing"),
        ({"prefix_v": torch.zeros(5, 2, 8)}, "prefix_v has shape"),
        ({"sinks": torch.zeros(2)}, "sinks has shape"),
        ({"window": -1}, "window is -1"),
        ({"softcap": 0.0}, "softcap is 0.0"),
        ({"backend": "gpu"}, "backend is 'gpu'"),
        ({"forest": [17]}, "forest is a list"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change, complaint):
    case = small_case()
    with pytest.raises(ValueError, match=complaint):
        prefix_attention(**{"forest": case.forest, **case.inputs} | change)
