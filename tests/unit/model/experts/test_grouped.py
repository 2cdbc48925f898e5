import pytest
import torch
import torch.nn.functional as F

from model.experts.grouped import grouped_linear, has_grouped_product, looped_linear

ENDS = torch.tensor([5, 5, 6, 16], dtype=torch.int32)  # the second group is empty


def operands(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(16, 8).to(dtype).requires_grad_(), torch.randn(4, 24, 8).to(dtype).requires_grad_()


def gradients(product, x: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    out = product(x, weight)
    return [out, *torch.autograd.grad(out.float().square().sum(), (x, weight))]


def by_hand(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    bounds = [0, *ENDS.tolist()]
    return torch.cat([x[bounds[n] : bounds[n + 1]] @ weight[n].T for n in range(4)])


def test_the_loop_multiplies_each_group_with_its_matrix():
    ours = gradients(lambda x, weight: grouped_linear(x, weight, ENDS), *operands())
    torch.testing.assert_close(ours, gradients(by_hand, *operands()))
    assert not ours[2][1].any()  # nobody reads with the second matrix


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchs_grouped_product_equals_the_loop(dtype: torch.dtype):
    """Where it is more than a loop it takes the loop's place; here both can be called."""
    theirs = gradients(lambda x, weight: F.grouped_mm(x, weight.mT, offs=ENDS), *operands(dtype))
    ours = gradients(lambda x, weight: looped_linear(x, weight, ENDS), *operands(dtype))
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_a_cpu_has_no_grouped_product():
    assert not has_grouped_product(*operands(torch.bfloat16))


def test_the_operator_keeps_torchs_rules():
    torch.library.opcheck(looped_linear, (*operands(), ENDS))
