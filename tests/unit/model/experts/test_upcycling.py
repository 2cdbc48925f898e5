import pytest
import torch

from model import ModelConfig, TransformerLM
from model.config.size import inner_size
from model.experts.upcycling import upcycled, upcycling_problem
from model.snapshot import restore

KEYS = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "seq_length": 12, "init_std": 0.3, "bias": False}


def dense_and_sparse(**changes) -> tuple[TransformerLM, TransformerLM, str]:
    torch.manual_seed(0)
    dense = TransformerLM(ModelConfig(**KEYS | {key: changes[key] for key in changes if key == "mlp"}), 50)
    sparse = TransformerLM(ModelConfig(**KEYS | {"num_experts": 4} | changes), 50)
    report = restore(sparse, upcycled(dense.state_dict(), sparse.config))
    assert not report.left_out and all(".router." in name for name in report.new)
    return dense.eval(), sparse.eval(), report.summary()


@pytest.mark.parametrize("kind", ["gelu", "swiglu"])
@pytest.mark.parametrize("changes", [{}, {"shared_experts": 0}, {"shared_experts": 2}, {"moe_layers": "alternate"}])
def test_experts_as_wide_as_the_mlp_leave_what_it_computes(kind: str, changes: dict):
    width = inner_size(16, kind)
    dense, sparse, _ = dense_and_sparse(mlp=kind, expert_hidden_size=width, **changes)
    ids = torch.randint(0, 50, (2, 12))
    torch.testing.assert_close(sparse.hidden_states(ids), dense.hidden_states(ids), rtol=1e-4, atol=1e-4)


def test_narrow_experts_have_slices_in_turn():
    dense, sparse, _ = dense_and_sparse(expert_hidden_size=24)  # of 64: shared 0-23, then 24-47, 48-63 and 0-7, ...
    up, mlp = dense.blocks[0].mlp.up.weight, sparse.blocks[0].mlp
    assert torch.equal(mlp.shared.up.weight, up[:24])
    assert torch.equal(mlp.experts.up[0], up[24:48])
    assert torch.equal(mlp.experts.up[1], torch.cat([up[48:], up[:8]]))
    scale = 64 / (3 * 24)
    torch.testing.assert_close(mlp.experts.down[0], scale * dense.blocks[0].mlp.down.weight[:, 24:48])


def test_what_cannot_be_upcycled_has_a_reason():
    config = ModelConfig(**KEYS, num_experts=4)
    assert upcycling_problem(config) is None
    assert "biases" in upcycling_problem(config.model_copy(update={"bias": True}))
    assert "64" in upcycling_problem(config.model_copy(update={"expert_hidden_size": 65}))
