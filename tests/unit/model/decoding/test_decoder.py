"""model/decoding/decoder.py: both decoders equal the model itself, whatever the order of calls."""

import pytest
import torch

from model import AuxiliaryConfig, ModelConfig, TransformerLM
from model.decoding.decoder import Decoder, KernelDecoder, Weights, quantized
from model.decoding.torch_decoder import TorchDecoder
from model.experts import sparse_layers
from model.latent.trunk import LastBlock

VOCAB_SIZE = 301  # neither a multiple of 64 nor of 4
KINDS = {
    "gpt": {},
    "plain": {"bias": False, "tie_embeddings": False, "hidden_size": 30, "num_heads": 3},  # no multiple of a vector
    "rotary": {"positions": "rotary", "norm": "rms", "qk_norm": True, "mlp": "squared_relu", "bias": False},
    "swiglu": {"positions": "rotary", "norm": "rms", "mlp": "swiglu"},
}


def make_model(kind: str) -> TransformerLM:
    shape = {"hidden_size": 32, "num_heads": 4, "num_layers": 2, "seq_length": 24, **KINDS[kind]}
    torch.manual_seed(0)
    model = TransformerLM(ModelConfig(**shape), VOCAB_SIZE).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases that matter
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.fixture(params=KINDS)
def model(request) -> TransformerLM:
    return make_model(request.param)


@pytest.fixture(params=[KernelDecoder, TorchDecoder])
def decoder(request, model) -> Decoder:
    return KernelDecoder(Weights(model, "fp32"), 3) if request.param is KernelDecoder else TorchDecoder(model, 3)


def expected(model: TransformerLM, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(model.hidden_states(torch.tensor([tokens]))[0])


def check(logits: torch.Tensor, model: TransformerLM, *rows: list[int]) -> None:
    torch.testing.assert_close(logits, torch.stack([expected(model, row)[-1] for row in rows]), rtol=1e-4, atol=1e-4)


def test_rows_at_different_positions_equal_the_model(model, decoder):
    a, b, c = [1, 2, 3, 4, 5], [300, 8], [9] * 11
    check(decoder.read(0, a), model, a)
    torch.testing.assert_close(decoder.read(1, b, every=True), expected(model, b), rtol=1e-4, atol=1e-4)
    check(decoder.read(2, c), model, c)
    check(decoder.step([0, 1, 2], [6, 7, 8]), model, [*a, 6], [*b, 7], [*c, 8])
    check(decoder.step([2, 0], [11, 12]), model, [*c, 8, 11], [*a, 6, 12])  # row 1 has ended
    continued = decoder.read(0, [13, 14], every=True)  # several tokens behind others
    torch.testing.assert_close(continued, expected(model, [*a, 6, 12, 13, 14])[-2:], rtol=1e-4, atol=1e-4)
    assert decoder.lengths == [9, 3, 13]


def test_tokens_are_forgotten_and_slots_reordered(model, decoder):
    decoder.read(0, [1, 2, 3])
    decoder.read(1, [4, 5, 6, 7])
    decoder.lengths[0] = 1
    check(decoder.step([0, 1], [9, 9]), model, [1, 9], [4, 5, 6, 7, 9])
    decoder.reorder([1, 1, 0])
    assert decoder.lengths == [5, 5, 2]
    check(decoder.step([0, 1, 2], [10, 11, 12]), model, [4, 5, 6, 7, 9, 10], [4, 5, 6, 7, 9, 11], [1, 9, 12])


def test_the_window_can_be_filled_to_its_last_token(model, decoder):
    tokens = list(range(model.config.seq_length))
    decoder.read(0, tokens[:-1])
    check(decoder.step([0], tokens[-1:]), model, tokens)


def test_the_kernel_gives_a_row_the_same_bits_alone_and_in_company(model):
    weights = Weights(model, "fp32")
    rows = [[7, 8, 9, 3, 3], [1], *([n, n + 1, n + 2] for n in range(9))]
    many = weights.decoder(len(rows))
    for slot, row in enumerate(rows):
        many.read(slot, row)
    together = many.step(range(len(rows)), range(20, 20 + len(rows))).clone()
    for number, row in enumerate(rows):
        alone = weights.decoder(1)
        for token in row:  # one by one, where above the row was read at once
            alone.step([0], [token])
        assert torch.equal(alone.step([0], [20 + number])[0], together[number])


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_both_decoders_read_the_same_reduced_weights(model, precision, monkeypatch):
    kernel = Weights(model, precision).decoder(2)
    monkeypatch.setattr("model.decoding.kernel.library", lambda: None)
    plain = Weights(model, precision).decoder(2)
    assert isinstance(kernel, KernelDecoder) and isinstance(plain, TorchDecoder)
    for ours in (kernel, plain):
        ours.read(0, [5, 6, 7])
    exact = expected(model, [5, 6, 7, 8])[-1]
    found = [ours.step([0], [8])[0].float() for ours in (kernel, plain)]
    # int8: the same numbers. bf16: torch rounds the activations, too.
    torch.testing.assert_close(
        found[0], found[1], rtol=0, atol=1e-4 if precision == "int8" else 0.05 * exact.std().item()
    )
    assert 0 < (found[0] - exact).abs().max() < 0.1 * exact.std()
    assert model.tokens.weight.dtype == torch.float32


def test_int8_rows_are_within_half_a_step():
    weight = torch.randn(10, 64)
    weight[3] = 0
    small, scale = quantized(weight)
    assert small.dtype == torch.int8 and small.abs().max() == 127
    assert ((small * scale[:, None] - weight).abs() <= scale[:, None] / 2 + 1e-7).all()


@torch.inference_mode()
def test_drafts_equal_the_drafters_own(model):
    """From the kernel, whose weights are in bf16, nearly."""
    auxiliary = AuxiliaryConfig(enable_draft=True, draft_rollouts=0)
    drafting = TransformerLM(model.config, VOCAB_SIZE, auxiliary).eval()
    drafting.load_state_dict(model.state_dict(), strict=False)
    drafter = drafting.latent.drafter
    with torch.no_grad():
        for parameter in drafter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    tokens, token = [5, 6, 7, 8, 9], torch.tensor(300)
    ids = torch.tensor([tokens])
    with torch.no_grad():
        states = drafting.states(ids)
        rotations = None if drafting.rotary is None else drafting.rotary(1, 5)
        text = LastBlock(drafting).keys_and_values(states.before_last)
        drafted = drafter(states.final[:, -1:], drafting.tokens(token)[None, None], text, None, rotations)[:, 0, 0]
        expected = drafting.logits(drafted)
        conditioned = expected[1] + (drafter.after.weight @ drafter.before.weight[42])[:VOCAB_SIZE]
    weights = Weights(drafting, "fp32")
    for decoder, tolerance in ((weights.decoder(2), 0.03), (TorchDecoder(drafting, 2, drafter), 1e-4)):
        decoder.read(1, tokens)
        decoder.place()
        torch.testing.assert_close(decoder.hidden[-1], states.final[0, -1], rtol=1e-4, atol=1e-4)
        logits = decoder.draft(1, decoder.hidden[-1], token)
        assert logits.shape == (3, VOCAB_SIZE) and decoder.draft_length == 3
        torch.testing.assert_close(logits, expected, rtol=tolerance, atol=tolerance * float(expected.std()))
        logits = decoder.condition(logits[1].clone(), torch.tensor(42))
        torch.testing.assert_close(logits, conditioned, rtol=tolerance, atol=tolerance * float(conditioned.std()))
        assert decoder.lengths == [0, 5]  # drafting reads nothing


STREAMS = {
    "streams": {"stream_scales": True, "skip_connections": True, "embedding_norm": True, "num_layers": 5},
    "tables": {"value_embeddings": "tables", "attention_gates": True, "exclusive_attention": True},
    "projections": {"value_embeddings": "projections", "positions": "rotary", "norm": "rms", "qk_norm": True},
    "bigrams": {"bigram_rows": 97, "exclusive_attention": True},
    "context": {"embedding_context": 3, "bigram_rows": 97, "stream_scales": True},
}
UNKNOWN = {
    "head": {"embedding_size": 12, "logit_softcap": 8.0},
}


def check_all(model: TransformerLM, weights: Weights) -> None:
    test_rows_at_different_positions_equal_the_model(model, weights.decoder(3))
    test_tokens_are_forgotten_and_slots_reordered(model, weights.decoder(3))
    test_the_window_can_be_filled_to_its_last_token(model, weights.decoder(3))


@pytest.mark.parametrize("streams", STREAMS)
def test_both_decoders_know_what_every_block_can_read(streams: str, monkeypatch):
    monkeypatch.setitem(KINDS, streams, STREAMS[streams])
    model = make_model(streams)
    weights = Weights(model, "fp32")
    assert isinstance(weights.decoder(1), KernelDecoder)
    check_all(model, weights)
    test_the_kernel_gives_a_row_the_same_bits_alone_and_in_company(model)
    for precision in ("bf16", "int8"):
        test_both_decoders_read_the_same_reduced_weights(model, precision, monkeypatch)
        monkeypatch.undo()
    monkeypatch.setattr("model.decoding.kernel.library", lambda: None)
    weights = Weights(model, "fp32")
    assert isinstance(weights.decoder(1), TorchDecoder)
    check_all(model, weights)


@pytest.mark.parametrize("unknown", UNKNOWN)
def test_what_the_kernel_does_not_know_is_decoded_by_torch(unknown: str, monkeypatch):
    monkeypatch.setitem(KINDS, unknown, UNKNOWN[unknown])
    model = make_model(unknown)
    weights = Weights(model, "fp32")
    assert isinstance(weights.decoder(1), TorchDecoder)
    check_all(model, weights)
    exact = expected(model, [5, 6, 7, 8])[-1]
    for precision in ("bf16", "int8"):
        reduced = Weights(model, precision).decoder(2)
        reduced.read(1, [5, 6, 7])
        assert 0 < (reduced.step([1], [8])[0].float() - exact).abs().max() < 0.1 * exact.std()


EXPERTS = {"num_experts": 4, "bias": False, "mlp": "swiglu"}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_torch_decodes_models_of_experts(monkeypatch, precision):
    monkeypatch.setitem(KINDS, "experts", EXPERTS)
    weights = Weights(make_model("experts"), precision)
    decoder, ids = weights.decoder(1), [1, 2, 3, 4, 5, 6]
    assert not weights.on_kernel and isinstance(decoder, TorchDecoder)
    found = decoder.read(0, ids)
    if precision != "bf16":
        check(found, weights.model, ids)
    assert all(layer.router.weight.dtype == torch.float32 for layer in sparse_layers(weights.model.blocks))


def test_the_text_of_experts_is_that_of_the_whole_forward_pass(monkeypatch):
    """One token at a time, by the decoder and by reading everything again; the draws are the same noise."""
    monkeypatch.setitem(KINDS, "experts", EXPERTS)
    model, ids = make_model("experts"), [7, 8, 9]
    decoder, noise = Weights(model, "fp32").decoder(1), 5 * torch.randn(24, VOCAB_SIZE)
    token = int((decoder.read(0, ids) + noise[3]).argmax())
    while len(ids) < 23:
        assert token == int((expected(model, ids)[-1] + noise[len(ids)]).argmax())
        ids.append(token)
        token = int((decoder.step([0], [token]) + noise[len(ids)]).argmax())
    assert len(set(ids)) > 10
