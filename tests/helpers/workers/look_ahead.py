"""Run by test_look_ahead.py in one or more processes: losses and figures with the whole lookahead core on, for some
stages and for a plain loop over the same passes.

python look_ahead.py OUTPUT.json STAGE [STAGE ...]
"""

import json
import os
import sys

import torch

from engine.device import deepspeed_engine
from engine.device.ranks import Ranks, join, leave
from engine.optim.optimizers import adamw
from engine.run.stability import StabilityGuard
from engine.run.step import FIGURES, StepRunner
from engine.run.telemetry import mean_figures
from model import AuxiliaryConfig, ModelConfig, TransformerLM
from model.latent import LookAhead, LookAheadSampler, Trained
from sources.loading.loader import Batch, BatchShape
from tests.helpers.workers.golden import LENGTH, TRAIN, VOCABULARY, rows

STEPS, PASSES, ROWS = 10, 4, 2  # passes of a step over all ranks, and rows of each
# The kind of trunk that is shipped, and so wide that stage 3 takes its matrices apart.
SHAPE = ModelConfig(
    hidden_size=128,
    num_layers=2,
    num_heads=2,
    seq_length=LENGTH,
    positions="rotary",
    norm="rms",
    qk_norm=True,
    mlp="squared_relu",
)
EVERYTHING = AuxiliaryConfig(
    enable_policy=True,
    enable_value=True,
    enable_dynamics=True,
    enable_span_contrastive=True,
    enable_draft=True,
    draft_rollouts=2,
    information_gain_weight=0.1,
    gain_weighting=0.5,
    policy_detach_trunk=False,
    value_detach_trunk=False,
    dynamics_detach_trunk=False,
    span_contrastive_detach_trunk=False,
    auxiliary_warmup_fraction=0.0,
    rollout_depth=3,
    rollout_row_fraction=0.5,
    value_horizons=(4, 16),
)


def passes() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Inputs, labels and segments (STEPS, PASSES, ROWS, LENGTH); the labels are unequal over passes."""
    inputs, labels = (tensor[:STEPS].reshape(STEPS, PASSES, ROWS, LENGTH) for tensor in rows())
    return inputs, labels, torch.where(labels == -100, -1, 0).int()


def look_ahead(segment_ids: torch.Tensor, step: int, number: int) -> LookAhead:
    """The draw of the pass that is `number` over all ranks, so that it does not matter which rank has it."""
    return LookAheadSampler(EVERYTHING, LENGTH, seed=1).draw(segment_ids, Trained.alike(1.0), step, 0, number)


def fresh_model() -> TransformerLM:
    torch.manual_seed(0)
    return TransformerLM(SHAPE, VOCABULARY, EVERYTHING)


def plain() -> dict[str, list]:
    """A plain PyTorch loop, as ARCHITECTURE.md tells what the loss is."""
    inputs, labels, segment_ids = passes()
    model = fresh_model()
    optimizer = adamw(model, TRAIN.learning_rate, TRAIN.weight_decay)
    told = {"losses": [], "norms": [], "figures": []}
    for step in range(STEPS):
        labels_in_step = (labels[step] != -100).sum()
        nll, figures = 0.0, torch.zeros(len(FIGURES), 2, dtype=torch.float64)
        for number in range(PASSES):
            draw = look_ahead(segment_ids[step, number], step, number)
            output = model(inputs[step, number], labels[step, number], look_ahead=draw)
            (output.loss_sum / labels_in_step).backward()
            nll = nll + output.token_nll.sum()
            figures[: len(output.auxiliary)] += output.auxiliary  # those of a memory stay 0
        core = list(model.latent.parameters())
        trunk = [parameter for name, parameter in model.named_parameters() if not name.startswith("latent.")]
        norms = [torch.nn.utils.clip_grad_norm_(part, TRAIN.gradient_clipping).item() for part in (trunk, core)]
        told["norms"].append(norms[0])
        optimizer.step()
        optimizer.zero_grad()
        told["losses"].append((nll / labels_in_step).item())
        told["figures"].append(mean_figures(figures))
    return told


def engine(stage: int, ranks: Ranks) -> dict[str, list]:
    """Through DeepSpeed; each rank has its share of the passes, which are the same on any number of ranks."""
    inputs, labels, segment_ids = passes()
    share = PASSES // ranks.world_size
    mine = range(ranks.rank * share, (ranks.rank + 1) * share)
    train = TRAIN.model_copy(update={"zero_stage": stage})
    shape = BatchShape(ROWS, share, LENGTH, ranks.rank, ranks.world_size)
    engine = deepspeed_engine.initialize(fresh_model(), train, shape, ranks, bf16=False)
    guard = StabilityGuard(train.on_spike, train.max_skipped_steps)
    runner = StepRunner(engine, ranks, 1, train.gradient_clipping)
    told = {"losses": [], "norms": [], "figures": []}
    for step in range(STEPS):
        own = [tensor[step, mine.start : mine.stop] for tensor in (inputs, labels, segment_ids)]
        sources = torch.zeros(share, ROWS, dtype=torch.int64)
        batch = Batch(*own, sources, num_tokens=0, number=step, state={}, events=[])
        draws = [look_ahead(segment_ids[step, number], step, number) for number in mine]
        labels_in_step = int((labels[step] != -100).sum())
        result = runner.run(batch, labels_in_step, guard, draws)
        told["losses"].append(result.loss)
        told["norms"].append(result.grad_norm)
        told["figures"].append(mean_figures(result.auxiliary))
    engine.destroy()
    return told


def main() -> None:
    torch.set_num_threads(1)
    ranks = join()
    results = {argument: engine(int(argument), ranks) for argument in sys.argv[2:]}
    if ranks.is_main:
        with open(sys.argv[1], "w") as file:
            json.dump({**results, "plain": plain()}, file)
    leave()


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # DeepSpeed's own exit handlers have nothing to add
