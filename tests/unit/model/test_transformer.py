"""model/transformer.py: against a plain reference, tying, padding, randomness, and its hook for the lookahead core."""

import ast
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model import ModelConfig, TransformerLM
from model.attention import causal_mask
from tests.helpers.text import REPOSITORY


def plain_logits(model: TransformerLM, input_ids: torch.Tensor) -> torch.Tensor:
    """The same network written with nn.MultiheadAttention, an explicit mask and the whole logits."""
    x = model.tokens.weight[input_ids] + model.positions.weight[: input_ids.shape[1]]
    for block in model.blocks:
        attention = nn.MultiheadAttention(model.config.hidden_size, model.config.num_heads, batch_first=True)
        attention.load_state_dict(block.attention.state_dict())
        y = block.attention_norm(x)
        x = x + attention(y, y, y, attn_mask=~causal_mask(input_ids.shape[1]), need_weights=False)[0]
        y = block.mlp_norm(x)
        x = x + F.linear(F.gelu(F.linear(y, *block.mlp.up.parameters())), *block.mlp.down.parameters())
    return model.final_norm(x) @ model.head_weight[: model.vocab_size].T


@pytest.fixture
def batch(token_ids):
    rows = token_ids[: 4 * 32].view(4, 32)
    labels = token_ids[1 : 4 * 32 + 1].view(4, 32).clone()
    labels[1, 20:] = -100
    return rows, labels


def test_loss_and_logits_equal_the_plain_network(trained, batch):
    input_ids, labels = batch
    expected = plain_logits(trained, input_ids)
    with torch.no_grad():
        logits = trained.logits(trained.hidden_states(input_ids))
        output = trained(input_ids, labels)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    expected_nll = F.cross_entropy(expected.flatten(0, 1), labels.flatten(), reduction="none").view(4, 32)
    torch.testing.assert_close(output.token_nll, expected_nll, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.loss_sum, expected_nll.sum())
    assert (output.token_nll[1, 20:] == 0).all() and (output.token_nll[0] > 0).all()


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_blocks_that_are_computed_again_give_the_same_bits(batch, dropout: float):
    config = ModelConfig(hidden_size=32, num_layers=3, num_heads=2, seq_length=32, dropout=dropout)
    torch.manual_seed(0)
    model = TransformerLM(config, 512)
    found, kept = [], []
    for model.checkpoint_activations in (False, True):
        torch.manual_seed(1)
        model.zero_grad()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, sizes=sizes: sizes.append(x.nbytes) or x, lambda x: x):
            loss = model(*batch).loss_sum
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
        kept.append(sum(sizes))
    assert all(map(torch.equal, *found))
    assert kept[1] < kept[0] / 2


def test_training_learned_something(trained, batch):
    input_ids, labels = batch
    with torch.no_grad():
        mean_nll = trained(input_ids, labels).loss_sum / (labels != -100).sum()
    assert mean_nll < math.log(trained.vocab_size) - 1.5


def test_the_tied_weight_learns_from_both_of_its_uses(config, batch):
    input_ids, labels = batch
    torch.manual_seed(0)
    tied = TransformerLM(config, 500)
    untied = TransformerLM(config.model_copy(update={"tie_embeddings": False}), 500)
    untied.load_state_dict({**tied.state_dict(), "lm_head.weight": tied.tokens.weight})
    assert "lm_head.weight" not in tied.state_dict()
    for model in (tied, untied):
        model(input_ids, labels).loss_sum.backward()
    assert untied.tokens.weight.grad.any() and untied.lm_head.weight.grad.any()
    both = untied.tokens.weight.grad + untied.lm_head.weight.grad
    torch.testing.assert_close(tied.tokens.weight.grad, both, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_padding_rows_have_no_probability_and_no_gradient(config, batch, tie_embeddings):
    input_ids, labels = batch
    model = TransformerLM(config.model_copy(update={"tie_embeddings": tie_embeddings}), 450)
    assert (model.padded_vocab_size, len(model.head_weight)) == (512, 512)
    with torch.no_grad():
        model.head_weight[450:] = 100.0 * model.head_weight[:62]  # rows that would win if they took part
    input_ids, labels = input_ids.clamp(max=449), labels.clamp(max=449)
    output = model(input_ids, labels)
    expected = plain_logits(model, input_ids)  # over the 450 real rows only
    torch.testing.assert_close(output.token_nll[0], F.cross_entropy(expected[0], labels[0], reduction="none"))
    output.loss_sum.backward()
    assert (model.head_weight.grad[450:] == 0).all()
    assert model.logits(model.hidden_states(input_ids)).shape == (4, 32, 450)


def test_a_vocabulary_without_padding_adds_nothing(config):
    model = TransformerLM(config, 512)
    assert model.padded_vocab_size == 512 and model.output_bias is None


def test_the_seed_decides_the_weights(config):
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([parameter.flatten() for parameter in TransformerLM(config, 500).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_dropout_zero_draws_no_random_number(config, batch):
    model = TransformerLM(config, 500).train()
    state = torch.get_rng_state()
    first = model(*batch).loss_sum
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model(*batch).loss_sum, first)

    model = TransformerLM(config.model_copy(update={"dropout": 0.2}), 500).train()
    assert not torch.equal(model(*batch).loss_sum, model(*batch).loss_sum)
    model.eval()
    assert torch.equal(model(*batch).loss_sum, model(*batch).loss_sum)


def test_only_parameters_are_in_the_state_dict(trained):
    assert set(trained.state_dict()) == {name for name, _ in trained.named_parameters()}


def test_the_trunk_imports_one_name_of_the_lookahead_core():
    tree = ast.parse((REPOSITORY / "model" / "transformer.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = [name.name for node in imports if "latent" in (node.module or "") for name in node.names]
    assert names == ["LookaheadCore"]


def test_counts_of_parameters_and_flops():
    model = TransformerLM(ModelConfig(num_layers=2, num_heads=2, hidden_size=8, seq_length=16), 64)
    block = 4 * 8 * 8 + 4 * 8 + 2 * 4 * 8 * 8 + 4 * 8 + 8 + 4 * 8
    assert model.num_parameters() == 64 * 8 + 16 * 8 + 2 * block + 2 * 8
    assert model.flops_per_token() == 6 * (2 * 12 * 8 * 8 + 64 * 8) + 12 * 2 * 8 * 16
    untied = TransformerLM(
        ModelConfig(num_layers=2, num_heads=2, hidden_size=8, seq_length=16, tie_embeddings=False), 64
    )
    assert untied.num_parameters() == model.num_parameters() + 64 * 8
    assert untied.flops_per_token() == model.flops_per_token()


def test_bf16_autocast_keeps_the_loss_and_the_gradients_in_fp32(config, batch):
    torch.manual_seed(0)
    model = TransformerLM(config, 500)
    input_ids, labels = batch[0][:1], batch[1][:1]
    exact = model(input_ids, labels).loss_sum
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(input_ids, labels)
    output.loss_sum.backward()
    assert output.loss_sum.dtype == torch.float32
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    assert 0 < abs(output.loss_sum - exact) / exact < 0.01
