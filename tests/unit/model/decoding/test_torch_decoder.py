"""model/decoding/torch_decoder.py: what test_decoder.py does not ask of both decoders."""

import torch

from model import AuxiliaryConfig, ModelConfig, TransformerLM
from model.decoding.torch_decoder import TorchDecoder

SHAPE = {"hidden_size": 32, "num_heads": 4, "num_layers": 2, "seq_length": 24, "positions": "rotary", "norm": "rms"}


@torch.inference_mode()
def test_several_tokens_are_verified_as_they_are_read():
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(**SHAPE), 60, AuxiliaryConfig(enable_draft=True, draft_rollouts=0)).eval()
    read, verified = (TorchDecoder(model, 1, model.latent.drafter) for _ in range(2))
    for decoder in (read, verified):
        decoder.read(0, [1, 2, 3])
    for tokens in ([4, 5, 6, 7], [8], [9, 10]):
        expected = read.read(0, tokens, every=True)
        verified.place()
        logits = verified.verify(torch.tensor([tokens]))[0]
        torch.testing.assert_close(logits, expected)
        torch.testing.assert_close(verified.hidden, read.hidden)
        assert verified.lengths == read.lengths
        verified.lengths[0] -= 1  # the last one is forgotten
        read.lengths[0] -= 1
