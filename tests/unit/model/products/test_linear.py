"""model/products/linear.py: torch's functions while the kernel is off; with it the same numbers but for rounding."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model import ModelConfig, TransformerLM
from model.products import kernel, linear
from model.products.linear import Linear, by_kernel, kernel_multiplies, product, products, use_kernel

needs_kernel = pytest.mark.skipif(kernel.library() is None, reason="there is no C compiler")


def layer(bias: bool = True) -> tuple[Linear, torch.Tensor]:
    torch.manual_seed(0)
    return Linear(24, 40, bias), torch.randn(3, 100, 24, requires_grad=True)


def output_and_gradients(own: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x.grad = None
    own.zero_grad()
    y = own(x)
    (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    return [y.detach(), x.grad, *(parameter.grad for parameter in own.parameters())]


def test_off_it_is_torchs_layer():
    own, x = layer()
    theirs = nn.Linear(24, 40)
    theirs.load_state_dict(own.state_dict())
    assert not kernel_multiplies(x, 300)
    for a, b in zip(output_and_gradients(own, x), output_and_gradients(theirs, x), strict=True):
        assert torch.equal(a, b)


@needs_kernel
@pytest.mark.parametrize("bias", [True, False])
def test_the_kernel_gives_the_same_output_and_gradients(bias: bool, monkeypatch: pytest.MonkeyPatch):
    own, x = layer(bias)
    shapes, multiply = [], kernel.multiply
    monkeypatch.setattr(kernel, "multiply", lambda a, b, *rest: shapes.append(a.shape) or multiply(a, b, *rest))
    expected = output_and_gradients(own, x)
    with by_kernel():
        assert kernel_multiplies(x, 300)
        made = output_and_gradients(own, x)
    for a, b in zip(made, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)
    assert shapes == [(300, 24), (300, 40), (40, 300)]  # its three products


@needs_kernel
def test_what_the_kernel_leaves_to_torch():
    x = torch.zeros(2, 4)
    with by_kernel():
        assert not kernel_multiplies(x, linear.LEAST_ROWS - 1) and not kernel_multiplies(x.double(), 300)
        with torch.autocast("cpu", torch.bfloat16):
            assert not kernel_multiplies(x, 300)
        with by_kernel(False):
            assert not kernel_multiplies(x, 300)
        assert kernel_multiplies(x, 300)
    assert not kernel_multiplies(x, 300)


def test_without_a_kernel_it_cannot_be_turned_on(monkeypatch):
    monkeypatch.setattr(kernel, "library", lambda: None)
    with pytest.raises(RuntimeError, match="no C compiler"):
        use_kernel(True)
    assert not kernel_multiplies(torch.zeros(2), 300)


@needs_kernel
def test_products_without_gradients():
    a, b, out = torch.randn(300, 20), torch.randn(20, 30), torch.ones(300, 30)
    with by_kernel():
        torch.testing.assert_close(product(a, b), a @ b)
        assert product(a, b, out=out, add=True) is out
    torch.testing.assert_close(out, 1 + a @ b)
    assert torch.equal(product(a, b), a @ b)
    assert torch.equal(product(a, b, out=torch.ones(300, 30), add=True), torch.ones(300, 30).addmm_(a, b))
    batch = torch.randn(3, 10, 20)
    torch.testing.assert_close(products(batch, batch.mT), batch @ batch.mT)


@needs_kernel
def test_a_compiled_model_is_one_graph_for_each_way():
    torch._dynamo.reset()
    graphs = []

    def counting(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        graphs.append(graph)
        return graph.forward

    torch.manual_seed(0)
    config = ModelConfig(hidden_size=32, num_layers=2, num_heads=2, seq_length=64, mlp="swiglu", norm="rms")
    model, ids = TransformerLM(config, 500), torch.randint(500, (8, 64))
    compiled = torch.compile(model, backend=counting, fullgraph=True)
    losses, gradients = [], []
    for enabled in (False, True, False, True):
        model.zero_grad()
        with by_kernel(enabled):
            loss = compiled(ids, ids).loss_sum
            loss.backward()
        losses.append(loss.item())
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert len(graphs) == 2
    assert losses[0] == losses[2] and losses[1] == losses[3]
    assert losses[0] / ids.numel() == pytest.approx(losses[1] / ids.numel(), abs=1e-5)
    for plain, own in zip(gradients[0], gradients[1], strict=True):
        torch.testing.assert_close(own, plain, atol=1e-5 * plain.abs().max().item(), rtol=1e-3)


@needs_kernel
def test_orders_of_a_layers_input_do_not_matter():
    x, weight = torch.randn(20, 300).t(), torch.randn(40, 20)
    with by_kernel():
        torch.testing.assert_close(linear.linear(x, weight), F.linear(x, weight))
        torch.testing.assert_close(linear.linear(x[:, ::2], weight[:, ::2]), F.linear(x[:, ::2], weight[:, ::2]))
