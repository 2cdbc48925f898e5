import pytest
import torch

from model import ModelConfig
from model.block import MLP, TransformerBlock
from model.experts import SparseMLP, activate, sparse_layers

KINDS = {
    "swiglu": {"mlp": "swiglu"},
    "squared_relu": {"mlp": "squared_relu"},
    "three of one, none shared": {"experts_per_token": 3, "shared_experts": 0, "expert_hidden_size": 5},
    "two shared": {"shared_experts": 2},
}


def by_hand(mlp: SparseMLP, x: torch.Tensor) -> torch.Tensor:
    """Token by token."""
    routing, kind, rows = mlp.router(x), mlp.experts.kind, []
    for token, experts, weights in zip(x, routing.indices, routing.weights, strict=True):
        row = torch.zeros_like(token) if mlp.shared is None else mlp.shared(token)
        for expert, weight in zip(experts, weights, strict=True):
            row = row + weight * (mlp.experts.down[expert] @ activate(mlp.experts.up[expert] @ token, kind))
        rows.append(row)
    return torch.stack(rows)


@pytest.fixture(params=KINDS)
def mlp(request, make_sparse) -> SparseMLP:
    return make_sparse(**KINDS[request.param])


def test_a_token_is_read_by_its_experts_and_the_shared_ones(mlp: SparseMLP):
    x = torch.randn(30, 16)
    torch.testing.assert_close(mlp(x), by_hand(mlp, x))
    assert torch.equal(mlp(x.view(2, 15, 16)), mlp(x).view(2, 15, 16))


def test_gradients_are_those_of_the_sum(mlp: SparseMLP):
    x = torch.randn(30, 16)
    ours = torch.autograd.grad(mlp(x).square().sum(), list(mlp.parameters()))
    theirs = torch.autograd.grad(by_hand(mlp, x).square().sum(), list(mlp.parameters()))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_all_experts_on_all_tokens_is_the_same_sum(mlp: SparseMLP):
    x = torch.randn(30, 16)
    routing = mlp.router(x)
    torch.testing.assert_close(mlp.experts.of_all(x, routing), mlp.experts(x, routing))


def test_frozen_gives_the_same_without_gradient_to_the_weights(mlp: SparseMLP):
    x = torch.randn(30, 16, requires_grad=True)
    made = mlp.frozen(x)
    assert torch.equal(made, mlp(x))
    made.square().sum().backward()
    assert x.grad.abs().sum() > 0 and all(parameter.grad is None for parameter in mlp.parameters())


def test_routing_is_kept_for_training_alone(mlp: SparseMLP):
    x = torch.randn(6, 16)
    mlp.frozen(x)
    with torch.no_grad():
        mlp(x)
    mlp.eval()(x)
    assert mlp.routing is None
    mlp.train()(x)
    assert mlp.routing is not None and mlp.routing.load.sum() == 6 * mlp.router.experts_per_token


def test_active_weights_are_those_that_read_a_token(make_sparse):
    mlp = make_sparse(expert_hidden_size=10)  # two of four, and a shared one
    assert mlp.active_routed_weights() == 2 * 2 * 16 * 10
    assert mlp.active_weights() == 3 * 2 * 16 * 10 + 4 * 16


def test_it_compiles_in_one_graph(make_sparse):
    mlp, x = make_sparse(), torch.randn(30, 16)
    torch.testing.assert_close(torch.compile(mlp, backend="aot_eager", fullgraph=True)(x), mlp(x))


def test_blocks_without_experts_have_one_mlp():
    config = ModelConfig(num_layers=2, num_experts=4, moe_layers="alternate", hidden_size=16, num_heads=2)
    blocks = [TransformerBlock(config, layer) for layer in range(2)]
    assert isinstance(blocks[0].mlp, MLP) and sparse_layers(blocks) == [blocks[1].mlp]
