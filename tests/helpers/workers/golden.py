"""Run by tests/integration/test_golden_loss.py in one or more processes: the engine's losses for a stage, and those of
a plain loop.

python golden.py OUTPUT.json STAGE [STAGE ...]
"""

import json
import os
import pydoc_data.topics
import sys
from contextlib import nullcontext

import torch

from engine.config import TrainConfig
from engine.device import deepspeed_engine
from engine.device.ranks import Ranks, join, leave
from engine.optim.optimizers import make_optimizer
from engine.run.stability import StabilityGuard
from engine.run.step import StepRunner
from model import ModelConfig, TransformerLM
from sources.loading.loader import Batch, BatchShape

STEPS, MICRO_BATCHES, GLOBAL_ROWS, LENGTH, VOCABULARY = 50, 2, 8, 32, 256
SHAPE = ModelConfig(hidden_size=32, num_layers=2, num_heads=2, seq_length=LENGTH)
OFFLOADED = 2, 1
TRAIN = TrainConfig(accumulation_steps=MICRO_BATCHES, learning_rate=3e-3, precision="fp32", compile=False)


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """(STEPS, GLOBAL_ROWS, LENGTH) inputs and labels: bytes of Python's own documentation, some labels padding."""
    text = "\n".join(pydoc_data.topics.topics.values()).encode("ascii", "replace")
    ids = torch.tensor(list(text[: STEPS * GLOBAL_ROWS * LENGTH + 1]))
    inputs, labels = ids[:-1].view(STEPS, GLOBAL_ROWS, LENGTH), ids[1:].clone().view(STEPS, GLOBAL_ROWS, LENGTH)
    labels[:, ::3, LENGTH // 2 :] = -100  # unequal over ranks: the mean is over tokens all the same
    return inputs, labels


def fresh_model() -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(SHAPE, VOCABULARY)


def autocast(bf16: bool):
    return torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext()


def plain_losses(train: TrainConfig, bf16: bool) -> tuple[list[float], list[float]]:
    """The same training as a plain PyTorch loop over the whole global batch: losses, gradient norms."""
    inputs, labels = rows()
    model = fresh_model()
    optimizer = make_optimizer(model, train, bf16)
    losses, norms = [], []
    for step in range(STEPS):
        with autocast(bf16):
            loss_sum, _ = model(inputs[step], labels[step])
        loss = loss_sum / (labels[step] != -100).sum()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), TRAIN.gradient_clipping).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, norms


def shape_of_step(ranks: Ranks) -> BatchShape:
    return BatchShape(
        GLOBAL_ROWS // MICRO_BATCHES // ranks.world_size, MICRO_BATCHES, LENGTH, ranks.rank, ranks.world_size
    )


def batch_of(inputs: torch.Tensor, labels: torch.Tensor, ranks: Ranks) -> Batch:
    """This rank's share of one step's rows (GLOBAL_ROWS, LENGTH), in MICRO_BATCHES micro-batches."""
    mine = slice(ranks.rank * GLOBAL_ROWS // ranks.world_size, (ranks.rank + 1) * GLOBAL_ROWS // ranks.world_size)
    shape = (MICRO_BATCHES, GLOBAL_ROWS // MICRO_BATCHES // ranks.world_size, LENGTH)
    return Batch(
        inputs[mine].reshape(shape),
        labels[mine].reshape(shape),
        segment_ids=torch.zeros(shape, dtype=torch.int32),
        source_ids=torch.zeros(shape[:2], dtype=torch.int64),
        num_tokens=0,
        number=0,
        state={},
        events=[],
    )


def engine_losses(train: TrainConfig, stage: int, ranks: Ranks, bf16: bool) -> tuple[list[float], list[float]]:
    """Through DeepSpeed, each rank with its share of every step's rows, in MICRO_BATCHES micro-batches."""
    inputs, labels = rows()
    train = train.model_copy(update={"zero_stage": stage})
    engine = deepspeed_engine.initialize(fresh_model(), train, shape_of_step(ranks), ranks, bf16)
    guard = StabilityGuard(train.on_spike, train.max_skipped_steps)
    runner = StepRunner(engine, ranks, 1, train.gradient_clipping)
    losses, norms = [], []
    for step in range(STEPS):
        batch = batch_of(inputs[step], labels[step], ranks)
        labels_in_step = int((labels[step] != -100).sum())
        result = runner.run(batch, labels_in_step, guard)
        norms.append(result.grad_norm)
        losses.append(result.loss)
    engine.destroy()
    return losses, norms


def main() -> None:
    torch.set_num_threads(1)
    ranks = join()
    results = {}
    for optimizer, bf16 in (("adamw", False), ("adamw", True), ("muon", False)):
        train = TRAIN.model_copy(update={"optimizer": optimizer})
        kind = f"{optimizer} {'bf16' if bf16 else 'fp32'}"
        for stage in [int(argument) for argument in sys.argv[2:]]:
            results[f"stage {stage} {kind}"] = engine_losses(train, stage, ranks, bf16)
        results[f"plain {kind}"] = plain_losses(train, bf16)
    for stage in OFFLOADED if ranks.world_size > 1 else OFFLOADED[:1]:
        train = TRAIN.model_copy(update={"offload_optimizer": True})
        results[f"stage {stage} offloaded"] = engine_losses(train, stage, ranks, bf16=False)
    if ranks.is_main:
        with open(sys.argv[1], "w") as file:
            json.dump(results, file)
    leave()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # DeepSpeed's own exit handlers have nothing to add
