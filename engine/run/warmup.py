"""Before the first step: a step and an evaluation micro-batch that change nothing.

Everything is compiled and memory peaks before there is anything to lose. The tokens are all the same one, in the shape
that training has.
"""

import itertools
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

from engine.device import deepspeed_engine
from engine.device.microbatch import dummy_batch
from engine.run.evaluation import Evaluator
from engine.run.stability import StabilityGuard
from engine.run.step import StepRunner
from model.latent import LookAhead
from sources.loading.loader import Batch, BatchShape


def warm_up(
    runner: StepRunner,
    evaluator: Evaluator,
    shape: BatchShape,
    repeats: int,
    draw: Callable[[Batch], list[LookAhead] | None],
) -> None:
    """Run a step of `shape` and one evaluation micro-batch `repeats` times each; the optimizer must have no state yet.

    `draw` makes a batch's draws for the lookahead core. With a curriculum the step is run once more with weighted rows,
    which is another graph and takes more memory.
    """
    runner = replace(runner, forbid_synchronization=False)
    for _ in range(repeats):
        warmup_step(runner, shape, draw)
    if runner.curriculum is not None:
        with runner.curriculum.as_after_burn_in():
            for _ in range(repeats):
                warmup_step(runner, shape, draw)
        runner.curriculum.forget_step()
    if not evaluator.is_empty:
        evaluator.evaluate(runner.engine, lambda micro_batches: itertools.islice(micro_batches, repeats))


def warmup_step(runner: StepRunner, shape: BatchShape, draw: Callable[[Batch], list[LookAhead] | None]) -> None:
    """Run one step at a learning rate of 0 and undo what it leaves.

    Two micro-batches suffice for peak memory: the gradients of one are held beside the next.
    """
    micro_batches = min(2, shape.grad_accumulation_steps)
    batch = dummy_batch(replace(shape, grad_accumulation_steps=micro_batches))
    unchanged = runner.balance.unchanged() if runner.balance else nullcontext()
    with unchanged, deepspeed_engine.warmup_step(runner.engine, micro_batches):
        labels = batch.num_tokens * runner.ranks.world_size
        runner.run(batch, labels, StabilityGuard("log", 1), draw(batch))
