"""The options of the `model` section, across the files of the trunk: what holds with each of them."""

import copy
import math

import pytest
import torch

from model import ModelConfig, TransformerLM
from model.experts import sparse_layers
from model.snapshot import restore

OPTIONS = {
    "plain": {},
    "rotary": {"positions": "rotary"},
    "rms": {"norm": "rms"},
    "qk_norm": {"qk_norm": True},
    "squared_relu": {"mlp": "squared_relu"},
    "swiglu": {"mlp": "swiglu"},
    "no_bias": {"bias": False},
    "all": {
        "positions": "rotary",
        "norm": "rms",
        "qk_norm": True,
        "mlp": "swiglu",
        "bias": False,
        "tie_embeddings": False,
    },
    "embedding_norm": {"embedding_norm": True},
    "stream_scales": {"stream_scales": True},
    "skip_connections": {"skip_connections": True, "num_layers": 5},
    "value_tables": {"value_embeddings": "tables"},
    "value_projections": {"value_embeddings": "projections"},
    "attention_gates": {"attention_gates": True},
    "exclusive_attention": {"exclusive_attention": True},
    "bigrams": {"bigram_rows": 97},
    "context": {"embedding_context": 3},
    "context of one": {"embedding_context": 1, "embedding_norm": True, "bigram_rows": 97},
    "capped": {"logit_softcap": 5.0, "z_loss": 1e-3},
    "zero_head": {"tie_embeddings": False, "head_init": "zero"},
    "factorised": {"embedding_size": 8},
    "factorised_untied": {"embedding_size": 8, "tie_embeddings": False},
    "experts": {"num_experts": 4},
    "alternate experts, none shared": {"num_experts": 4, "moe_layers": "alternate", "shared_experts": 0},
}
STARTS_AS_PLAIN = (
    "stream_scales",
    "skip_connections",
    "value_tables",
    "value_projections",
    "attention_gates",
    "bigrams",
    "context",
)


def make(config: ModelConfig, option: str) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(config.model_copy(update=OPTIONS[option]), 500).eval()


@pytest.fixture(params=OPTIONS)
def model(request, config) -> TransformerLM:
    """With weights so large that every part matters."""
    model = make(config.model_copy(update={"init_std": 0.2}), request.param)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("norm", "gate", "streams", "bigrams", "context")):
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_without_biases_none_is_left(config):
    names = [name for name, _ in make(config, "no_bias").named_parameters()]
    assert names and not any("bias" in name for name in names)


def test_decoding_with_a_cache_equals_reading_the_whole(model, token_ids):
    ids, cache = token_ids[None, :32], model.new_cache()
    with torch.no_grad():
        parts = [model.hidden_states(part, cache) for part in ids.split([9, 1, 1, 14, 7], dim=1)]
        whole = model.hidden_states(ids)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-4, rtol=1e-4)


def test_later_tokens_never_change_earlier_outputs(model, token_ids):
    changed = token_ids[None, :32].clone()
    changed[0, 20:] = (changed[0, 20:] + 1) % 500
    with torch.no_grad():
        before, after = model.hidden_states(token_ids[None, :32]), model.hidden_states(changed)
    assert torch.equal(before[:, :20], after[:, :20])
    assert not torch.isclose(before[:, 20:], after[:, 20:]).all(dim=-1).any()


def test_a_segment_is_read_as_if_it_stood_alone(model, token_ids):
    ids = token_ids[None, :32]
    segment_ids = torch.tensor([[0] * 11 + [1] * 15 + [-1] * 6])
    with torch.no_grad():
        together = model.hidden_states(ids, segment_ids=segment_ids)
        for columns in (slice(0, 11), slice(11, 26)):
            alone = model.hidden_states(ids[:, columns])
            torch.testing.assert_close(together[:, columns], alone, atol=1e-4, rtol=1e-4)


def test_a_longer_window_leaves_what_was_learned(model, token_ids):
    longer = copy.deepcopy(model)
    longer.extend_max_seq_len(80)
    with torch.no_grad():
        assert torch.equal(longer.hidden_states(token_ids[None, :32]), model.hidden_states(token_ids[None, :32]))
        assert longer.hidden_states(token_ids[None, :80]).isfinite().all()


def test_weights_come_back_from_a_state_dict(model, token_ids):
    torch.manual_seed(1)
    other = TransformerLM(model.config, 500).eval()
    report = restore(other, model.state_dict())
    assert not report.new and not report.left_out
    with torch.no_grad():
        assert torch.equal(other.hidden_states(token_ids[None, :32]), model.hidden_states(token_ids[None, :32]))


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_learns_and_is_counted(config, token_ids, option):
    model = make(config, option).train()
    assert model.num_parameters() == sum(parameter.numel() for parameter in model.parameters())
    tables = {"tokens.weight", "positions.weight", "lm_head.weight", "bigrams.table.weight"}
    if option == "value_tables":
        tables.add("streams.values.1.weight")
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and name not in tables)
    matrices += sum(p.numel() for name, p in model.named_parameters() if name == "context.weight")
    matrices += sum(layer.active_routed_weights() for layer in sparse_layers(model.blocks))
    head = model.padded_vocab_size * (model.config.embedding_size or config.hidden_size)
    attention = 12 * model.config.num_layers * config.hidden_size * config.seq_length
    assert model.flops_per_token() == 6 * (matrices + head) + attention
    rows, labels = token_ids[:256].view(8, 32), token_ids[1:257].view(8, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(30):
        loss = model(rows, labels).loss_sum / labels.numel()
        optimizer.zero_grad()
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        assert all(g is not None and (step == 0 or g.any()) for g in gradients)  # what starts at 0 may hide a gate
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(500), abs=0.3) and losses[-1] < losses[0] - 2


@pytest.mark.parametrize("option", STARTS_AS_PLAIN)
def test_what_is_added_starts_as_the_plain_trunk_and_draws_nothing(config, token_ids, option):
    added, state = make(config, option), torch.random.get_rng_state()
    plain = make(config.model_copy(update={"num_layers": added.config.num_layers}), "plain")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(weight, added.get_parameter(name)) for name, weight in plain.named_parameters())
    with torch.no_grad():
        for length in (1, 32):
            ids = token_ids[None, :length]
            assert torch.equal(added.hidden_states(ids), plain.hidden_states(ids))


@pytest.mark.parametrize("option", OPTIONS)
def test_compiled_without_graph_breaks(config, token_ids, option):
    model = make(config, option)
    rows, labels = token_ids[:64].view(2, 32), token_ids[1:65].view(2, 32)
    expected = model(rows, labels)
    expected.loss_sum.backward()
    gradient = model.tokens.weight.grad.clone()
    model.zero_grad()
    model.compile(backend="aot_eager", fullgraph=True)
    output = model(rows, labels)
    output.loss_sum.backward()
    torch.testing.assert_close(output.token_nll, expected.token_nll)
    torch.testing.assert_close(model.tokens.weight.grad, gradient, atol=1e-5, rtol=1e-4)
    torch.compiler.reset()  # the number of compilations of one function is limited
