import pytest
import torch

from model import AuxiliaryConfig, ModelConfig, TransformerLM
from model.experts import balance_loss, sparse_layers, z_loss
from model.experts.training import take_routing
from model.tensors import ExpertOutput, TrainingOutput

CONFIG = ModelConfig(hidden_size=16, num_layers=2, num_heads=2, seq_length=12, num_experts=4)


def make(**auxiliary: float) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(CONFIG, 50, AuxiliaryConfig(**auxiliary))


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(0, 50, (3, 12))
    labels = ids.roll(-1, 1)
    labels[:, -1] = -100
    return ids, labels


def test_training_returns_the_loads_and_keeps_no_routing(batch):
    model = make()
    output = model(*batch)
    assert isinstance(output, ExpertOutput)
    assert output.load.shape == (2, 4) and output.load.sum(dim=1).tolist() == [72, 72]
    assert all(layer.routing is None for layer in sparse_layers(model.blocks))
    assert isinstance(model.eval()(*batch), TrainingOutput)


def test_losses_are_weighted_means_times_the_labels(batch):
    plain = make()(*batch)
    model = make(expert_balance_weight=0.5, router_z_weight=0.25)
    routings = []
    for layer in sparse_layers(model.blocks):
        layer.router.register_forward_hook(lambda _module, _inputs, routing: routings.append(routing))
    output = model(*batch)
    means = [sum(loss(routing).item() for routing in routings) / 2 for loss in (balance_loss, z_loss)]
    expected = plain.loss_sum.item() + (0.5 * means[0] + 0.25 * means[1]) * 33
    assert output.loss_sum.item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(output.token_nll, plain.token_nll)


def test_without_training_there_is_nothing_to_take():
    model = make().eval()
    assert take_routing(sparse_layers(model.blocks), AuxiliaryConfig(), torch.zeros(1, 1)) == (None, None)
