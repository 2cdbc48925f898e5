"""Runs with the options of trunk and optimizer on: they learn, resume to the bit, and go on at other stages and on
other numbers of processes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from engine import train
from engine.checkpoint.folder import CURRENT
from engine.errors import Interrupted
from engine.events import read
from model import load
from model.products import kernel
from tests.helpers.training import TOKENS_PER_STEP, by_step, signal_after, train_with

MODEL: dict[str, Any] = {
    "embedding_norm": True,
    "stream_scales": True,
    "skip_connections": True,
    "value_embeddings": "tables",
    "attention_gates": True,
    "exclusive_attention": True,
    "bigram_rows": 200,
    "embedding_context": 2,
    "tie_embeddings": False,
    "head_init": "zero",
    "embedding_size": 16,
    "logit_softcap": 15.0,
    "z_loss": 1e-4,
}
TRAIN: dict[str, Any] = {
    "optimizer": "muon",
    "learning_rate": 1e-2,
    "learning_rate_schedule": "linear",
    "cooldown_fraction": 0.5,
    "embedding_rate_factor": 1.5,
    "scalar_rate_factor": 3.0,
    "head_rate_factor": 0.5,
    "embedding_weight_decay": 0.01,
    "head_weight_decay": 0.02,
    "weight_decay_schedule": "linear",
    "cautious_weight_decay": True,
    "muon_momentum_warmup_fraction": 0.5,
    "muon_normalise_rows": True,
    "muon_polynomial": "polar_express",
    "beta2_half_life_tokens": 5000,
    "weight_average_fraction": 0.5,
    "batch_doublings": [0.3],
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / CURRENT, weights_only=True)["model"]


# Alone, a process has stage 0 in the place of 1 and 2.
@pytest.mark.parametrize("stage", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_a_run_with_every_option_learns_and_resumes_to_the_bit(tiny, tmp_path: Path, stage: int):
    preset = tiny(model=MODEL, train=TRAIN | {"zero_stage": stage})
    whole, parts, budget = tmp_path / "whole", tmp_path / "parts", 24 * TOKENS_PER_STEP
    train(preset, token_budget=budget, checkpoint_dir=whole)
    for steps in (1, 6):
        signal_after(parts, steps)
        with pytest.raises(Interrupted):
            train(preset, token_budget=budget, checkpoint_dir=parts)
    train(preset, token_budget=budget, checkpoint_dir=parts)
    assert all(torch.equal(tensor, weights(parts)[name]) for name, tensor in weights(whole).items())
    losses = list(by_step(read(whole)).values())
    assert losses[-1] < losses[0] - 0.2
    lm = load(whole / CURRENT)
    assert lm.generate("The", max_new_tokens=8, temperature=0.0).tokens


@pytest.mark.skipif(kernel.library() is None, reason="there is no C compiler")
@pytest.mark.parametrize("stage", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_products_by_the_kernel_resume_to_the_bit(tiny, tmp_path: Path, stage: int):
    """A lineage keeps the kernel where the preset leaves it open; its losses are torch's but for rounding."""
    asked, left_open, by_torch = (
        tiny(train={"products": which, "zero_stage": stage}) for which in ("kernel", "auto", "torch")
    )
    budget = 8 * TOKENS_PER_STEP
    losses = {}
    for name, preset in (("whole", asked), ("torch", by_torch)):
        train(preset, token_budget=budget, checkpoint_dir=tmp_path / name)
        losses[name] = list(by_step(read(tmp_path / name)).values())
    signal_after(tmp_path / "parts", 3)
    with pytest.raises(Interrupted):
        train(asked, token_budget=budget, checkpoint_dir=tmp_path / "parts")
    train(left_open, token_budget=budget, checkpoint_dir=tmp_path / "parts")
    whole, parts, other = (weights(tmp_path / name) for name in ("whole", "parts", "torch"))
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in whole.items())
    assert losses["whole"] == pytest.approx(losses["torch"], abs=1e-4)
    assert losses["whole"][:2] == pytest.approx(losses["torch"][:2], abs=1e-5)
    ways = [event["derived"]["products"] for event in read(tmp_path / "parts") if event["event"] == "run"]
    assert ways == ["kernel", "kernel"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_processes_train_what_one_does_and_continue_each_other(tiny, tmp_path: Path, stage: int):
    alone = tiny(model=MODEL, train=TRAIN | {"zero_stage": stage, "per_gpu_batch_size": 8})
    shared = tiny(model=MODEL, train=TRAIN | {"zero_stage": stage, "per_gpu_batch_size": 4})
    budget = 12 * TOKENS_PER_STEP
    one = by_step(train_with(1, alone, tmp_path / "one", budget))
    two = by_step(train_with(2, shared, tmp_path / "two", budget))
    assert list(two.values()) == pytest.approx(list(one.values()), abs=1e-3)
    one = by_step(train_with(1, alone, tmp_path / "two", 2 * budget))
    two = by_step(train_with(2, shared, tmp_path / "one", 2 * budget))
    assert len(one) == len(two) > 12 and list(two.values()) == pytest.approx(list(one.values()), abs=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_interrupted_ranks_equal_two_uninterrupted_to_the_bit(tiny, tmp_path: Path, stage: int):
    preset = tiny(model=MODEL, train=TRAIN | {"zero_stage": stage, "per_gpu_batch_size": 4})
    budget = 12 * TOKENS_PER_STEP
    train_with(2, preset, tmp_path / "whole", budget)
    interrupted = by_step(train_with(2, preset, tmp_path / "parts", budget, stop_after=5))
    assert 5 <= len(interrupted) < 8
    train_with(2, preset, tmp_path / "parts", budget)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


def test_doubled_steps_are_steps_of_twice_the_rows(tiny, tmp_path: Path):
    """To the bit: the same rows, and a learning rate that is larger by the root of 2."""
    usual = {"optimizer": "muon", "accumulation_steps": 1, "learning_rate": 5e-3}
    doubled = tiny(train=usual | {"batch_doublings": [0.0]})
    whole = tiny(train=usual | {"accumulation_steps": 2, "learning_rate": 5e-3 * 2**0.5})
    for folder, preset in (("doubled", doubled), ("whole", whole)):
        train(preset, token_budget=6 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / folder)
    assert by_step(read(tmp_path / "doubled")) == by_step(read(tmp_path / "whole"))
    made, expected = (weights(tmp_path / name) for name in ("doubled", "whole"))
    assert all(torch.allclose(made[name], tensor, atol=1e-6) for name, tensor in expected.items())
    sizes = tiny(train=usual | {"batch_doublings": [0.25, 0.5]})
    train(sizes, token_budget=8 * TOKENS_PER_STEP, checkpoint_dir=tmp_path / "growing")
    tokens = [event["tokens"] for event in read(tmp_path / "growing") if event["event"] == "step"]
    steps = [after - before for before, after in zip([0, *tokens], tokens, strict=False)]
    half = TOKENS_PER_STEP // 2
    assert steps[:4] == [half] * 4 and max(steps) == 4 * half and steps == sorted(steps)
