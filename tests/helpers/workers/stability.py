"""Run by tests/unit/engine/run/test_stability.py in one or more processes: steps of which some are bad on the last rank
alone, and the same steps without them, through the real engine.

python stability.py OUTPUT.json STAGE [STAGE ...]
"""

import json
import os
import sys
from typing import Any

import torch

from engine.device import deepspeed_engine
from engine.device.optimizer_state import optimizer_state
from engine.device.ranks import Ranks, join, leave
from engine.run.stability import MIN_LOSSES, StabilityGuard
from engine.run.step import StepResult, StepRunner
from model import TransformerLM
from tests.helpers.folders import equal
from tests.helpers.workers import golden
from tests.helpers.workers.golden import MICRO_BATCHES, TRAIN, VOCABULARY, batch_of, rows, shape_of_step

SHAPE = golden.SHAPE.model_copy(update={"hidden_size": 33, "num_heads": 1})  # no two ranks have equal shares
STEPS, BAD = 6, (0, 2, 3)  # the very first step, before there are moments, and two in a row
SKIPPED = [step in BAD for step in range(STEPS)]


class Spoilt(TransformerLM):
    """The model, whose next loss can be spoilt: "loss" and "spike" multiply it, "gradient" leaves it as it is."""

    spoil: str | None = None

    def forward(self, *inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        loss_sum, token_nll = super().forward(*inputs)
        if self.spoil == "gradient":
            loss_sum.register_hook(lambda gradient: gradient * torch.nan)
        elif self.spoil:
            factor = torch.nan if self.spoil == "loss" else 100.0
            loss_sum, token_nll = loss_sum * factor, token_nll * factor
        return loss_sum, token_nll


def train(kind: str, stage: int, bf16: bool, ranks: Ranks, leave_out: bool) -> tuple[list[StepResult], list[Any], bool]:
    """The results of the steps, the state at the end, and whether skipped steps, and they alone, left it as it was."""
    torch.manual_seed(0)
    model = Spoilt(SHAPE, VOCABULARY)
    settings = TRAIN.model_copy(update={"zero_stage": stage, "on_spike": "skip"})
    engine, guard = (
        deepspeed_engine.initialize(model, settings, shape_of_step(ranks), ranks, bf16),
        StabilityGuard("skip", 10),
    )
    guard.load({"losses": [6.0] * MIN_LOSSES, "skipped_in_a_row": 0})
    runner = StepRunner(engine, ranks, 1, settings.gradient_clipping)
    inputs, labels = rows()
    results, untouched = [], True
    for step in range(STEPS):
        if leave_out and step in BAD:
            continue
        model.spoil = kind if step in BAD and ranks.rank == ranks.world_size - 1 else None
        before = state(engine)
        labels_in_step = int((labels[step] != -100).sum())
        batch = batch_of(inputs[step], labels[step], ranks)
        results.append(runner.run(batch, labels_in_step, guard))
        guard.after_step(results[-1].loss, results[-1].skipped)
        untouched &= equal(before, state(engine)) == results[-1].skipped
        assert engine.micro_steps == MICRO_BATCHES * len(results), "those of a skipped step count too"
    end = state(engine)
    engine.destroy()
    return results, end, untouched


def state(engine: Any) -> list[Any]:
    return [deepspeed_engine.weights(engine, keep=True), optimizer_state(engine, keep=True)]


def main() -> None:
    torch.set_num_threads(1)
    ranks = join()
    results_by_name = {}
    for stage in [int(argument) for argument in sys.argv[2:]]:
        for kind, bf16 in (("loss", False), ("gradient", False), ("gradient", True), ("spike", False)):
            results, end, untouched = train(kind, stage, bf16, ranks, leave_out=False)
            good, good_end, _ = train(kind, stage, bf16, ranks, leave_out=True)
            results_by_name[f"stage {stage} {'bf16' if bf16 else 'fp32'} {kind}"] = {
                "verdicts": [str(result.verdict) for result in results],
                "skipped": [result.skipped for result in results],
                "counted": [int(result.loss_sums[1].sum()) > 0 for result in results],
                "untouched": untouched,
                "losses": [result.loss for result in results if not result.skipped],
                "losses_without": [result.loss for result in good],
                "same_end": equal(end, good_end),
            }
    everyone = ranks.gather(results_by_name)
    if ranks.is_main:
        with open(sys.argv[1], "w") as file:
            json.dump(everyone, file)
    leave()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # DeepSpeed's own exit handlers have nothing to add
