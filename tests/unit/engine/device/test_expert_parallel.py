"""Two real processes are in tests/integration/test_experts.py."""

import torch
from torch import nn

from engine.device.expert_parallel import Callback, is_spread, places, read_tokens, spreads_experts, without_experts
from model import ModelConfig, TransformerLM
from model.experts import sparse_layers


def test_tokens_that_are_placed_and_read_make_the_experts_sum():
    torch.manual_seed(0)
    config = ModelConfig(hidden_size=16, num_heads=2, num_layers=1, num_experts=4, mlp="swiglu", init_std=0.3)
    (mlp,) = sparse_layers(TransformerLM(config, 50).blocks)
    x = torch.randn(30, 16)
    routing = mlp.router(x)
    experts, place, weights = places(routing)
    room = int(routing.load.max())
    assert room == int(place.max()) + 1
    sent = torch.zeros(1, 4, room, 16)  # one rank has all experts
    sent[0, experts, place] = x.expand(2, -1, -1)
    read = read_tokens(sent, mlp.experts.up, mlp.experts.down, "swiglu")
    made = (read[0, experts, place] * weights[..., None]).sum(dim=0)
    torch.testing.assert_close(made, mlp.experts(x, routing))


def test_groups_are_divided_by_what_is_spread():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert not spreads_experts(model)
    (group,) = without_experts({"params": [*model.parameters()], "lr": 1})
    assert len(group["params"]) == 4 and group["lr"] == 1
    own = model[1].weight
    own.allreduce, own.group_name = False, "ep_size_2"
    assert is_spread(own) and spreads_experts(model)
    rest, spread = without_experts({"params": [*model.parameters()], "lr": 1})
    assert len(rest["params"]) == 3 and "moe" not in rest
    assert spread["params"] == [own] and spread["moe"] and (spread["name"], spread["lr"]) == ("ep_size_2", 1)


def test_a_callback_is_a_module_without_weights():
    double = Callback(lambda x: 2 * x)
    assert double(3) == 6 and not list(double.parameters())
