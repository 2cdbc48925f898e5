import pytest
import torch

from model.experts.routing import Router


@pytest.fixture
def router() -> Router:
    torch.manual_seed(0)
    router = Router(16, 6, 2)
    torch.nn.init.normal_(router.weight)
    return router


def test_scores_are_sigmoids_that_sum_to_the_number_of_experts(router: Router):
    x = torch.randn(20, 16)
    routing = router(x)
    scores = (x @ router.weight.T).sigmoid()
    best = scores.topk(2).values
    torch.testing.assert_close(routing.weights, 2 * best / best.sum(dim=1, keepdim=True))
    assert torch.equal(routing.indices, scores.topk(2).indices)
    assert torch.equal(routing.load, torch.bincount(routing.indices.flatten(), minlength=6))


def test_the_bias_chooses_and_does_not_weigh(router: Router):
    x = torch.randn(20, 16)
    router.expert_bias[3] = 10.0
    routing = router(x)
    assert (routing.indices == 3).any(dim=1).all() and routing.load[3] == 20
    chosen = (x @ router.weight.T).sigmoid().gather(1, routing.indices)
    torch.testing.assert_close(routing.weights, 2 * chosen / chosen.sum(dim=1, keepdim=True))


def test_the_bias_is_saved_and_has_no_gradient(router: Router):
    assert router.state_dict().keys() == {"weight", "expert_bias"}
    assert [name for name, _ in router.named_parameters()] == ["weight"]
    router(torch.randn(5, 16)).weights[:, 0].sum().backward()
    assert router.weight.grad.abs().sum() > 0 and router.expert_bias.grad is None


def test_logits_are_in_fp32_under_autocast(router: Router):
    x = torch.randn(5, 16)
    with torch.autocast("cpu", torch.bfloat16):
        routing = router(x)
    assert torch.equal(routing.logits, router(x).logits) and routing.weights.dtype == torch.float32
