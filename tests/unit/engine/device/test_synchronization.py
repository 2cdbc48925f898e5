"""No pass waits for the device, whatever is on; and what does is named with its place."""

from pathlib import Path

import pytest
import torch

from engine import train
from engine.device.synchronization import Synchronization, forbidden
from model.transformer import TransformerLM
from tests.helpers.training import TOKENS_PER_STEP

ON = {f"enable_{part}": True for part in ("policy", "value", "dynamics", "span_contrastive", "curriculum")}
EVERYTHING = ON | {
    "auxiliary_warmup_fraction": 0.0,
    "value_horizons": [4],
    "curriculum_burn_in_tokens": 0,
    "curriculum_interval_tokens": 1024,
}


@pytest.mark.parametrize("stage", [1, 3])  # in one process 0 to 2 are one
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_no_pass_of_a_run_waits_for_the_device(tiny, tmp_path: Path, stage: int, optimizer: str):
    if stage == 3 and torch.cuda.is_available():
        pytest.skip("DeepSpeed's stage 3 itself waits for a GPU")
    options = {"forbid_synchronization": True, "zero_stage": stage, "optimizer": optimizer}
    preset = tiny(train=options, model={"dropout": 0.1}, data={"document_mask": True}, auxiliary=EVERYTHING)
    result = train(preset, token_budget=8 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    assert result.tokens == 8 * TOKENS_PER_STEP


@pytest.mark.slow
def test_a_compiled_run_can_be_looked_at_too(tiny, tmp_path: Path):
    preset = tiny(train={"forbid_synchronization": True, "compile": "auto"})
    assert train(preset, token_budget=2 * TOKENS_PER_STEP, checkpoint_dir=tmp_path).tokens == 2 * TOKENS_PER_STEP


def test_a_read_value_is_named_with_its_place(tiny, tmp_path: Path, monkeypatch):
    original = TransformerLM.forward

    def asking(self, *arguments, **options):
        loss_sum, *others = original(self, *arguments, **options)
        if self.training and loss_sum.item() < 0:
            raise AssertionError
        return loss_sum, *others

    monkeypatch.setattr(TransformerLM, "forward", asking)
    preset = tiny(train={"forbid_synchronization": True})
    with pytest.raises(Synchronization, match=r"_local_scalar_dense.* called at .*/test_synchronization"):
        train(preset, token_budget=2 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)


@pytest.mark.parametrize(
    "asks",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x[x > 1],
        lambda x: x.nonzero(),
        lambda x: torch.masked_select(x, x > 1),
        lambda x: torch.equal(x, x),
        lambda x: x.unique(),
        lambda x: torch.autograd.grad((x.requires_grad_() * 2).sum() * float(x.detach().sum()), x),
    ],
)
def test_what_hands_values_or_sizes_to_the_host_is_told(asks):
    with pytest.raises(Synchronization, match="waits for the device"), forbidden(torch.device("cpu")):
        asks(torch.arange(4.0))


def test_what_only_computes_is_not():
    with forbidden(torch.device("cpu")):
        x = torch.arange(4.0)
        x[torch.tensor([1, 2])].sum().add_(torch.where(x > 1, x, 0.0).max())
        x.masked_fill(x > 1, 0.0).index_add_(0, torch.tensor([1]), x[:1])
