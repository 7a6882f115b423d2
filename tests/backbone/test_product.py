"""A frozen weight's product and its gradient, whichever library computes them."""

import pytest
import torch
import torch.nn.functional as F

from prompt_core.backbone.product import Product


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_product_and_gradient_are_those_of_a_linear_layer(dtype: torch.dtype, pack: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((50, 24), (50,), (7, 24)))
    along = torch.randn(7, 50, generator=generator).to(dtype)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float64: 1e-12}[dtype]
    ways = []
    for product in (Product(weight, bias, pack), lambda given: F.linear(given, weight, bias)):
        given = x.clone().requires_grad_()
        found = product(given)
        ways.append((found, *torch.autograd.grad(found, given, along)))
    for ours, theirs in zip(*ways, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_product_made_within_inference_mode_serves_training_too(rows: int) -> None:
    with torch.inference_mode():
        product = Product(torch.eye(4) * 2, None, pack=True)
        product(torch.ones(rows, 4))
    x = torch.ones(rows, 4, requires_grad=True)
    product(x).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.full((rows, 4), 2.0))
