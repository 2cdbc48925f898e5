"""Run by tests/integration/test_experts.py in one or more processes: losses of a model of experts.

python experts.py OUTPUT.json OPTIMIZER STAGE EXPERT_PARALLEL_SIZE
"""

import json
import os
import sys

import torch

from engine.device import deepspeed_engine
from engine.device.optimizer_state import load_optimizer_state, optimizer_state
from engine.device.ranks import Ranks, join, leave
from engine.optim.expert_balance import ExpertBalance
from engine.run.stability import StabilityGuard
from engine.run.step import StepRunner
from model import TransformerLM
from model.experts import sparse_layers
from tests.helpers.workers.golden import SHAPE, TRAIN, VOCABULARY, batch_of, rows, shape_of_step

STEPS = 8
EXPERTS = SHAPE.model_copy(update={"num_experts": 4, "bias": False, "mlp": "swiglu"})


def make(train, ranks: Ranks, weights: dict | None = None) -> StepRunner:
    torch.manual_seed(0)
    model = TransformerLM(EXPERTS, VOCABULARY)
    if weights:
        model.load_state_dict(weights)
    engine = deepspeed_engine.initialize(model, train, shape_of_step(ranks), ranks, bf16=False)
    balance = ExpertBalance(sparse_layers(model.blocks), 1e-2)
    return StepRunner(engine, ranks, 1, train.gradient_clipping, balance=balance)


def steps(runner: StepRunner, first: int, ranks: Ranks) -> list[list[float]]:
    """The loss, gradient norm and MaxVio of STEPS steps."""
    inputs, labels = rows()
    found = []
    for step in range(first, first + STEPS):
        count = int((labels[step] != -100).sum())
        result = runner.run(batch_of(inputs[step], labels[step], ranks), count, StabilityGuard("log", 10))
        found.append([result.loss, result.grad_norm, *result.max_violation.tolist()])
    return found


def main() -> None:
    torch.set_num_threads(1)
    ranks = join()
    output, optimizer, stage, size = sys.argv[1:]
    changes = {"optimizer": optimizer, "zero_stage": int(stage), "expert_parallel_size": int(size)}
    train = TRAIN.model_copy(update=changes)
    runner = make(train, ranks)
    held = sum(parameter.numel() for parameter in runner.engine.module.parameters())
    losses = steps(runner, 0, ranks)
    # A checkpoint: in full, whatever the ranks hold, and continued from it.
    weights = deepspeed_engine.weights(runner.engine, keep=True)
    state = optimizer_state(runner.engine, keep=True)
    shapes = {name: list(tensor.shape) for name, tensor in weights.items()}
    moments = {name: list(each["exp_avg"].shape) for name, each in state["moments"].items()}
    continued = steps(runner, STEPS, ranks)
    runner.engine.destroy()
    again = make(train, ranks, weights)
    missing = load_optimizer_state(again.engine, state if ranks.is_main else None, ranks)
    resumed = steps(again, STEPS, ranks)
    again.engine.destroy()
    if ranks.is_main:
        with open(output, "w") as file:
            results = {"losses": losses, "continued": continued, "resumed": resumed, "missing": missing}
            json.dump(results | {"shapes": shapes, "moments": moments, "held": held}, file)
    leave()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # DeepSpeed's own exit handlers have nothing to add
