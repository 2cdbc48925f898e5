"""Small models that look ahead, and both decoders over them."""

import pytest
import torch

from model import AuxiliaryConfig, ModelConfig, TransformerLM
from model.decoding.decoder import Decoder, Weights
from model.decoding.torch_decoder import TorchDecoder

SHAPE = {"hidden_size": 32, "num_heads": 4, "num_layers": 2, "seq_length": 24, "init_std": 0.3}
KINDS = {
    "rotary": {"positions": "rotary", "norm": "rms", "qk_norm": True, "mlp": "squared_relu", "bias": False},
    "gpt": {},
}
CORE = AuxiliaryConfig(enable_policy=True, enable_value=True, enable_draft=True, value_horizons=(4, 16))


@pytest.fixture(params=KINDS)
def model(request) -> TransformerLM:
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(**{**SHAPE, **KINDS[request.param]}), 40, CORE).eval()
    torch.nn.init.normal_(model.latent.drafter.after.weight)
    return model


@pytest.fixture(params=["kernel", "torch"])
def make_decoder(request, model):
    def make(slots: int) -> Decoder:
        if request.param == "kernel":
            return Weights(model, "fp32").decoder(slots)
        return TorchDecoder(model, slots, model.latent.drafter)

    return make
