"""What the lookahead core costs in training, the drafter and the information gain beside it, and that it costs nothing
when it is off.

    python -m benchmarks.lookahead_cost [--shapes 256x3,768x12] [--vocabulary 8192] [--rows 16] [--passes 4]

One process, the engine's own step with the optimizer and the kind of trunk that 04_lookahead.json ships, on the
standard library's text. The models take turns step by step, so that a shared machine's noise meets all alike; the
figures are medians of the ratios of neighbouring steps. `on` is the core as it is shipped, without a drafter; `draft`
has one, and `gain` the information gain too.
"""

import argparse
import itertools
import math
import statistics
import time
from pathlib import Path

import torch

from benchmarks.overhead import real_bytes
from engine.config import TrainConfig, load_preset
from engine.device import deepspeed_engine, machine
from engine.device.compiling import choose_compile, compile_model
from engine.device.ranks import Ranks, join, leave
from engine.events import EventLog
from engine.run.stability import StabilityGuard
from engine.run.step import StepRunner
from engine.screen.console import Console
from model import AuxiliaryConfig, ModelConfig, TransformerLM
from model.latent import LookAheadSampler, Trained
from sources.loading.loader import Batch, BatchShape

SHIPPED = load_preset("configs/04_lookahead.json")
CORE = SHIPPED.auxiliary
DRAFT = CORE.model_copy(update={"enable_draft": True})
GAIN = DRAFT.model_copy(update={"information_gain_weight": 0.1})
OFF = AuxiliaryConfig(policy_kl_weight=1.0, rollout_depth=1, value_horizons=(2,), span_length=3)  # weights, no switch


class Trainer:
    """A model and its engine, which makes one step after the other on the same batch."""

    def __init__(
        self, config: ModelConfig, auxiliary: AuxiliaryConfig | None, arguments: argparse.Namespace, ranks: Ranks
    ):
        train = TrainConfig(optimizer=SHIPPED.train.optimizer, learning_rate=SHIPPED.train.learning_rate)
        shape = BatchShape(arguments.rows, arguments.passes, config.seq_length)
        torch.manual_seed(0)
        model = TransformerLM(config, arguments.vocabulary, auxiliary)
        self.parameters, self.flops = model.num_parameters(), model.flops_per_token()
        self.ranks = ranks
        bf16 = machine.choose_bf16("auto", ranks, EventLog(Path(), Console(enabled=False)))
        engine = deepspeed_engine.initialize(model, train, shape, ranks, bf16)
        self.runner = StepRunner(engine, ranks, 1, train.gradient_clipping)
        self.guard = StabilityGuard(train.on_spike, train.max_skipped_steps)
        self.sampler = None
        if auxiliary is not None and auxiliary.looks_ahead:
            self.sampler = LookAheadSampler(auxiliary, config.seq_length, seed=0)
        self.steps = 0

    def step(self, batch: Batch) -> float:
        """Seconds."""
        begin = time.perf_counter()
        draws = None
        if self.sampler is not None:
            draws = [
                self.sampler.draw(ids, Trained.alike(1.0), self.steps, micro_batch=number)
                for number, ids in enumerate(batch.segment_ids)
            ]
        self.runner.run(batch, batch.num_tokens, self.guard, draws)
        if self.ranks.device.type == "cuda":
            torch.cuda.synchronize()
        self.steps += 1
        return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="256x3,768x12")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--passes", type=int, default=4, help="a step")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    ranks = join()
    print(f"{machine.describe(ranks.device)}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    for shape in arguments.shapes.split(","):
        width, layers = map(int, shape.split("x"))
        size = {"hidden_size": width, "num_layers": layers, "num_heads": width // 64, "seq_length": 256}
        config = SHIPPED.model.model_copy(update=size)
        compare(config, arguments, ranks)
    leave()


def compare(config: ModelConfig, arguments: argparse.Namespace, ranks: Ranks) -> None:
    shape = (arguments.passes, arguments.rows, config.seq_length)
    ids = real_bytes(math.prod(shape) + 1)
    batch = Batch(
        ids[:-1].view(shape).to(ranks.device),
        ids[1:].view(shape).to(ranks.device),
        segment_ids=torch.zeros(shape, dtype=torch.int32),
        source_ids=torch.zeros(shape[:2], dtype=torch.int64),
        num_tokens=ids.numel() - 1,
        number=0,
        state={},
        events=[],
    )
    kinds = {"none": None, "off": OFF, "on": CORE, "draft": DRAFT, "gain": GAIN}
    trainers = {name: Trainer(config, core, arguments, ranks) for name, core in kinds.items()}
    compiling = choose_compile(True, 0, ranks, Console(enabled=False)) if arguments.compile else None
    if compiling:
        for trainer in trainers.values():
            compile_model(trainer.engine)
    for _ in range(2):
        for trainer in trainers.values():
            trainer.step(batch)
    same = all(map(torch.equal, *(list(trainers[name].engine.module.parameters()) for name in ("none", "off"))))
    times: dict[str, list[float]] = {"off": [], "on": [], "draft": [], "gain": []}
    for number in range(arguments.rounds):
        for name in sorted(times, reverse=bool(number % 2)):
            times[name].append(trainers[name].step(batch))
    tokens = batch.num_tokens
    precision = "bf16" if machine.native_bf16(ranks.device) else "fp32"
    compiled = "compiled" if compiling else "eager"
    print(
        f"\n{config.num_layers} x {config.hidden_size}, vocabulary {arguments.vocabulary:,}, {tokens:,} tokens a step, "
        f"{arguments.passes} passes, {precision}, {compiled}"
    )
    for name in times:
        trainer, rate = trainers[name], tokens / statistics.median(times[name])
        print(
            f"  {name:5} {trainer.parameters / 1e6:7.2f} M parameters  {trainer.flops / 1e6:8.1f} MFLOP a token", end=""
        )
        print(f"  {rate:9,.0f} tokens/s (median of {arguments.rounds})")
    for without, name in itertools.pairwise(times):
        ratios = sorted(one / other for one, other in zip(times[without], times[name], strict=True))
        flops = trainers[without].flops / trainers[name].flops
        print(
            f"  {name} / {without}, tokens/s, pair by pair: {statistics.median(ratios):.3f} ({ratios[0]:.3f} to "
            f"{ratios[-1]:.3f}); by the count of FLOPs {flops:.3f}"
        )
    print(f"  off after two steps is to the bit what a model without the section is: {same}")
    for trainer in trainers.values():
        trainer.engine.destroy()


if __name__ == "__main__":
    main()
