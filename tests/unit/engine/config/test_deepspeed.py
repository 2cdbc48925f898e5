"""engine/config/deepspeed.py: what DeepSpeed is told of a batch and a stage."""

import pytest

from engine.config import TrainConfig
from engine.config.deepspeed import engine_config
from sources.loading.shape import BatchShape


@pytest.mark.parametrize(
    ("asked", "processes", "stage"), [(0, 1, 0), (1, 1, 0), (2, 1, 0), (3, 1, 3), (0, 2, 0), (1, 2, 1), (2, 2, 2)]
)
def test_the_batch_and_the_stage_that_deepspeed_gets(asked: int, processes: int, stage: int):
    """Alone, a process has nobody to divide moments or gradients with."""
    config = engine_config(TrainConfig(zero_stage=asked), BatchShape(4, 3, 16, 0, processes), bf16=True)
    assert config["zero_optimization"]["stage"] == stage
    assert (
        config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * processes == 12 * processes
    )
    assert config["train_batch_size"] == 12 * processes
    assert config["torch_autocast"]["enabled"] and not config["bf16"]["enabled"], "weights stay fp32"


def test_one_process_that_offloads_keeps_the_stage():
    config = engine_config(TrainConfig(zero_stage=2, offload_optimizer=True), BatchShape(4, 3, 16), bf16=False)
    assert config["zero_optimization"]["stage"] == 2
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert "offload_optimizer" not in engine_config(TrainConfig(), BatchShape(4, 3, 16), False)["zero_optimization"]
    on_gpu = engine_config(TrainConfig(zero_stage=1, offload_optimizer=True), BatchShape(4, 3, 16), True, on_gpu=True)
    assert on_gpu["zero_optimization"]["offload_optimizer"]["pin_memory"]
