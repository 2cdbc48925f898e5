"""engine/run/warmup.py: a step before the first that leaves no trace."""

from pathlib import Path

import pytest
import torch

from engine import train
from engine.checkpoint.folder import CURRENT
from engine.device import deepspeed_engine
from engine.device.microbatch import dummy_batch
from engine.device.optimizer_state import optimizer_state
from engine.device.ranks import join
from engine.errors import PresetError
from engine.run.stability import StabilityGuard
from engine.run.step import StepRunner
from engine.run.warmup import warmup_step
from model.latent import LookAhead, LookAheadSampler, Trained
from model.transformer import TransformerLM
from sources.loading.loader import Batch, BatchShape
from tests.helpers.training import TOKENS_PER_STEP

PARTS = {f"enable_{part}": True for part in ("policy", "value", "dynamics", "span_contrastive")}


def model_of(preset) -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(preset.model, 512, preset.auxiliary)


@pytest.mark.parametrize("stage", [1, 3])  # in one process 0 to 2 are one
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_warm_up_step_leaves_no_trace(tiny, monkeypatch, stage: int, optimizer: str):
    """The steps after it have the bits of those of an engine without a warm-up."""
    auxiliary = PARTS | {"value_horizons": [4], "auxiliary_warmup_fraction": 0.1}
    preset = tiny(train={"zero_stage": stage, "optimizer": optimizer}, auxiliary=auxiliary)
    shape = BatchShape(8, 3, preset.model.seq_length)
    ranks = join()
    sampler = LookAheadSampler(preset.auxiliary, preset.model.seq_length, 1)

    def draw(batch: Batch, share: float, number: int = -1) -> list[LookAhead]:
        return [sampler.draw(ids, Trained.alike(share), number) for ids in batch.segment_ids]

    def steps_after(warmed_up: bool) -> dict[str, torch.Tensor]:
        engine = deepspeed_engine.initialize(model_of(preset), preset.train, shape, ranks, bf16=False)
        runner = StepRunner(engine, ranks, 1, 1.0)
        if warmed_up:
            before = deepspeed_engine.weights(engine, keep=True)
            warmup_step(runner, shape, lambda batch: draw(batch, 0.0))
            after = deepspeed_engine.weights(engine, keep=True)
            assert all(torch.equal(before[name], after[name]) for name in before)
            assert optimizer_state(engine, keep=True)["step"] == 0
        deepspeed_engine.set_learning_rate(engine, 1e-2)
        generator = torch.Generator().manual_seed(1)
        for number in range(3):
            batch = dummy_batch(shape)
            batch.input_ids.random_(512, generator=generator)
            batch.labels.random_(512, generator=generator)
            runner.run(batch, batch.num_tokens, StabilityGuard("log", 1), draw(batch, 1.0, number))
        weights = deepspeed_engine.weights(engine, keep=True)
        state = optimizer_state(engine, keep=True)
        assert state["step"] == 3
        moments = {f"{name} {key}": moment for name, own in state["moments"].items() for key, moment in own.items()}
        engine.destroy()
        return weights | moments

    plain, warm = steps_after(False), steps_after(True)
    assert plain.keys() == warm.keys()
    assert all(torch.equal(plain[name], warm[name]) for name in plain)


def test_what_does_not_fit_shows_before_training(tiny, tmp_path: Path, monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(StepRunner, "run", full)
    with pytest.raises(PresetError, match="per_gpu_batch_size: 8 rows of 32 tokens do not fit"):
        train(tiny(), token_budget=6 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    assert torch.load(tmp_path / CURRENT, weights_only=True)["progress"]["step"] == 0


def test_a_curriculum_is_warmed_up_with_weights_and_without(tiny, tmp_path: Path, monkeypatch):
    asked = []
    forward = TransformerLM.forward

    def recorded(self, input_ids, *arguments, **options):
        if self.training:
            asked.append((bool(input_ids.any()), options.get("difficulty") is not None))
        return forward(self, input_ids, *arguments, **options)

    monkeypatch.setattr(TransformerLM, "forward", recorded)
    preset = tiny(auxiliary={"enable_curriculum": True, "curriculum_burn_in_tokens": 10**6})
    train(preset, token_budget=2 * TOKENS_PER_STEP, checkpoint_dir=tmp_path)
    text = [weighs for real, weighs in asked if real]
    warmed_up = [weighs for real, weighs in asked if not real]
    assert set(warmed_up) == {False, True} and set(text) == {False}
