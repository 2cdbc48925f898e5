"""model/streams/rescaling.py: factors of blocks, and models that are the same without them."""

import pytest
import torch

from model import AuxiliaryConfig, ModelConfig, TransformerLM
from model.decoding.decoder import Weights
from model.streams.rescaling import LAYER_FACTOR, folded

MLPS = ({}, {"num_experts": 4, "mlp": "swiglu"})


def model_with_factors(kind: str, **options) -> TransformerLM:
    torch.manual_seed(0)
    config = ModelConfig(num_layers=2, num_heads=2, hidden_size=16, seq_length=32, layer_rescaling=kind, **options)
    model = TransformerLM(config, 64).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) if parameter.ndim > 1 or LAYER_FACTOR in name else 0.1)
    return model


@pytest.mark.parametrize("kind", ["attention", "residual"])
@pytest.mark.parametrize("options", [*MLPS, {"qk_norm": True, "positions": "rotary", "bias": False}])
@torch.no_grad()
def test_a_folded_model_computes_the_same(kind: str, options: dict):
    model = model_with_factors(kind, **options)
    weights, config = folded(model.state_dict(), model.config)
    assert config.layer_rescaling == "none" and not any(LAYER_FACTOR in name for name in weights)
    plain = TransformerLM(config, 64).eval()
    plain.load_state_dict(weights)
    ids = torch.arange(20)[None]
    hidden = model.hidden_states(ids)
    torch.testing.assert_close(plain.hidden_states(ids), hidden, atol=1e-5, rtol=1e-5)
    without = TransformerLM(config, 64).eval()
    without.load_state_dict({name: w for name, w in model.state_dict().items() if LAYER_FACTOR not in name})
    assert (without.hidden_states(ids) - hidden).abs().max() > 0.01, "the test would see nothing"


@pytest.mark.parametrize("kind", ["attention", "residual"])
@torch.no_grad()
def test_decoders_write_what_the_model_says(kind: str):
    model = model_with_factors(kind)
    ids = list(range(20))
    expected = model.logits(model.hidden_states(torch.tensor([ids])))[0, -1:]
    torch.testing.assert_close(Weights(model, "fp32").decoder(1).read(0, ids), expected, atol=1e-4, rtol=1e-4)
    assert model.config.layer_rescaling == kind


def test_factors_start_at_one_and_draw_nothing():
    torch.manual_seed(0)
    plain = TransformerLM(ModelConfig(hidden_size=16, seq_length=8), 64)
    after = torch.rand(1)
    for kind in ("attention", "residual"):
        torch.manual_seed(0)
        model = TransformerLM(ModelConfig(hidden_size=16, seq_length=8, layer_rescaling=kind), 64)
        assert torch.equal(torch.rand(1), after)
        ids = torch.arange(8)[None]
        assert torch.equal(model.hidden_states(ids), plain.hidden_states(ids))
        model(ids, ids).loss_sum.backward()
        factors = [p for name, p in model.named_parameters() if name.endswith(LAYER_FACTOR)]
        assert len(factors) == 3 and all(p.item() == 1 and p.grad is not None for p in factors)


@pytest.mark.parametrize("kind", ["attention", "residual"])
@torch.no_grad()
def test_the_last_block_is_the_cores_with_its_factor(kind: str):
    """What the core predicts through the last block, of a state that is the text's own, is what the trunk says."""
    from model.latent.trunk import LastBlock

    model = model_with_factors(kind)
    states = model.states(torch.arange(20)[None])
    block = LastBlock(model)
    keys, values = block.keys_and_values(states.before_last)
    text = keys[:, :, :-1], values[:, :, :-1]
    allowed = torch.ones(1, 1, 1, 19, dtype=torch.bool)
    found = block(states.before_last[:, -1:], None, text, allowed, [])
    torch.testing.assert_close(found, states.final[:, -1:], atol=1e-5, rtol=1e-5)
    assert AuxiliaryConfig().looks_ahead is False
