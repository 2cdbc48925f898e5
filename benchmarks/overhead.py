"""What DeepSpeed's engine costs over a plain PyTorch loop: same model, batches, precision and threads, in one process.

    python -m benchmarks.overhead [--rows 8] [--rounds 9] [--vocabulary 50257] [--compile]
    python -m benchmarks.overhead --share [--rows 8] [--rounds 9] [--vocabulary 50257] [--compile]

--share measures instead which share of the machine's matrix-product rate a step reaches, in each precision that the
device computes in natively: TRAINING_EFFICIENCY of engine/screen/menu/estimates.py. Compiled is what a run is, where
that works.

Both loops take turns step by step, so that a shared machine's noise meets both alike; the figure is the median of the
ratios of neighbouring steps. The shape is the reference preset's (3 layers of 256, sequence 256), the text is the
standard library's own sources.
"""

import argparse
import statistics
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import torch

from engine.config import TrainConfig
from engine.device import deepspeed_engine, machine
from engine.device.compiling import compile_model
from engine.device.ranks import Ranks, join, leave
from engine.optim.optimizers import adamw
from engine.run.stability import StabilityGuard
from engine.run.step import StepRunner
from model import ModelConfig, TransformerLM
from sources.loading.loader import Batch, BatchShape


def real_bytes(count: int) -> torch.Tensor:
    """The first `count` bytes of the standard library's sources, as token ids."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text += path.read_bytes()
        if len(text) >= count:
            break
    return torch.tensor(list(text[:count]))


class EngineStep:
    """One optimizer step of the engine as a run takes it, on one batch of real text."""

    def __init__(self, arguments: argparse.Namespace, ranks: Ranks, bf16: bool):
        config = ModelConfig()
        self.ranks, self.train = ranks, TrainConfig(precision="bf16" if bf16 else "fp32")
        shape = (arguments.rows, config.seq_length)
        ids = real_bytes(arguments.rows * config.seq_length + 1)
        self.inputs, self.labels = ids[:-1].view(shape).to(ranks.device), ids[1:].view(shape).to(ranks.device)
        self.tokens = self.labels.numel()
        self.batch = Batch(
            self.inputs[None],
            self.labels[None],
            segment_ids=torch.zeros(1, *shape, dtype=torch.int32),
            source_ids=torch.zeros(1, arguments.rows, dtype=torch.int64),
            num_tokens=self.tokens,
            number=0,
            state={},
            events=[],
        )
        torch.manual_seed(0)
        model = TransformerLM(config, arguments.vocabulary)
        self.flops = model.flops_per_token() * self.tokens
        self.engine = deepspeed_engine.initialize(
            model, self.train, BatchShape(arguments.rows, 1, config.seq_length), ranks, bf16
        )
        if arguments.compile:
            compile_model(self.engine)
        self.runner = StepRunner(self.engine, ranks, 1, self.train.gradient_clipping)
        self.guard = StabilityGuard(self.train.on_spike, self.train.max_skipped_steps)

    def __call__(self) -> None:
        self.runner.run(self.batch, self.tokens, self.guard)


def timed(step: Callable[[], None], device: torch.device) -> float:
    """The seconds of one step."""
    begin = time.perf_counter()
    step()
    machine.synchronize(device)
    return time.perf_counter() - begin


def print_shares(arguments: argparse.Namespace, ranks: Ranks) -> None:
    """Print the share of the matrix-product rate that a step reaches, by precision."""
    device = ranks.device
    print(f"3 x 256, sequence 256, vocabulary {arguments.vocabulary:,}, {arguments.rows * 256:,} tokens a step")
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        if name == "bf16" and not machine.native_bf16(device):
            print("bf16  not native here")
            continue
        before = machine.flops_per_second(device, dtype)  # as the menu measures it, in a process that has done nothing
        step = EngineStep(arguments, ranks, bf16=name == "bf16")
        for _ in range(2):
            step()
        seconds = statistics.median(timed(step, device) for _ in range(arguments.rounds))
        after = machine.flops_per_second(device, dtype)
        step.engine.destroy()
        print(
            f"{name}  {step.tokens / seconds:8,.0f} tokens/s (median of {arguments.rounds}), matrix products "
            f"{before / 1e9:,.0f} GFLOP/s before and {after / 1e9:,.0f} after: "
            f'TRAINING_EFFICIENCY["{device.type}", "{name}"] = {step.flops / seconds / before:.2f}'
        )


def print_overhead(arguments: argparse.Namespace, ranks: Ranks) -> None:
    """Print the engine's time beside that of a plain loop, in fp32."""
    torch.manual_seed(0)
    plain = TransformerLM(ModelConfig(), arguments.vocabulary).to(ranks.device)
    engine_step = EngineStep(arguments, ranks, bf16=False)
    train, inputs, labels = engine_step.train, engine_step.inputs, engine_step.labels
    optimizer = adamw(plain, train.learning_rate, train.weight_decay)
    if arguments.compile:
        plain.compile()

    def plain_step() -> None:
        loss_sum, _ = plain(inputs, labels)
        (loss_sum / labels.numel()).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), train.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(2):
        plain_step(), engine_step()
    plain_times, engine_times = [], []
    for number in range(arguments.rounds):
        for times, step in sorted(
            [(plain_times, plain_step), (engine_times, engine_step)],
            key=lambda pair: (pair[0] is plain_times) == number % 2,
        ):
            times.append(timed(step, ranks.device))
    ratios = sorted(e / p for e, p in zip(engine_times, plain_times, strict=True))
    tokens = engine_step.tokens
    print(f"3 x 256, sequence 256, vocabulary {arguments.vocabulary:,}, {tokens:,} tokens a step, fp32, ZeRO-1")
    print(f"plain loop  {tokens / statistics.median(plain_times):8,.0f} tokens/s (median of {arguments.rounds})")
    print(f"engine      {tokens / statistics.median(engine_times):8,.0f} tokens/s (median of {arguments.rounds})")
    print(f"engine's time / plain loop's, pair by pair: median {statistics.median(ratios):.3f}", end="")
    print(f" (from {ratios[0]:.3f} to {ratios[-1]:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8, help="rows of 256 tokens a step")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--vocabulary", type=int, default=50_257)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--share", action="store_true", help="of the matrix-product rate, by precision")
    arguments = parser.parse_args()

    ranks = join()
    machine.use_cores(ranks.device)  # as main.py does
    how = "compiled" if arguments.compile else "eager"
    print(f"{machine.describe(ranks.device)}, torch {torch.__version__}, {how}")
    (print_shares if arguments.share else print_overhead)(arguments, ranks)
    leave()


if __name__ == "__main__":
    main()
