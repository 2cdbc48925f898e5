"""What DeepSpeed's engine costs over a plain PyTorch loop: same model, batches, precision and threads, in one process.

    python -m benchmarks.overhead [--rows 8] [--rounds 9] [--vocabulary 50257] [--compile]

Both loops take turns step by step, so that a shared machine's noise meets both alike; the figure is the median of the
ratios of neighbouring steps. The shape is the reference preset's (3 layers of 256, sequence 256), the text is the
standard library's own sources.
"""

import argparse
import statistics
import sysconfig
import time
from pathlib import Path

import torch

from engine.config import TrainConfig
from engine.device import deepspeed_engine, machine
from engine.device.compiling import compile_model
from engine.device.ranks import join, leave
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8, help="rows of 256 tokens a step")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--vocabulary", type=int, default=50_257)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()

    ranks = join()
    config = ModelConfig()
    train = TrainConfig(precision="fp32")
    shape = (arguments.rows, config.seq_length)
    ids = real_bytes(arguments.rows * config.seq_length + 1)
    inputs, labels = ids[:-1].view(shape).to(ranks.device), ids[1:].view(shape).to(ranks.device)
    batch = Batch(
        inputs[None],
        labels[None],
        segment_ids=torch.zeros(1, *shape, dtype=torch.int32),
        source_ids=torch.zeros(1, arguments.rows, dtype=torch.int64),
        num_tokens=labels.numel(),
        number=0,
        state={},
        events=[],
    )

    torch.manual_seed(0)
    plain = TransformerLM(config, arguments.vocabulary).to(ranks.device)
    optimizer = adamw(plain, train.learning_rate, train.weight_decay)
    torch.manual_seed(0)
    model = TransformerLM(config, arguments.vocabulary)
    engine = deepspeed_engine.initialize(
        model, train, BatchShape(arguments.rows, 1, config.seq_length), ranks, bf16=False
    )
    runner = StepRunner(engine, ranks, 1, train.gradient_clipping)
    guard = StabilityGuard(train.on_spike, train.max_skipped_steps)
    if arguments.compile:
        plain.compile()
        compile_model(engine)

    def plain_step() -> None:
        loss_sum, _ = plain(inputs, labels)
        (loss_sum / labels.numel()).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), train.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()

    def engine_step() -> None:
        runner.run(batch, labels.numel(), guard)

    def timed(step) -> float:
        begin = time.perf_counter()
        step()
        if ranks.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    for _ in range(2):
        plain_step(), engine_step()
    plain_times, engine_times = [], []
    for number in range(arguments.rounds):
        for times, step in sorted(
            [(plain_times, plain_step), (engine_times, engine_step)],
            key=lambda pair: (pair[0] is plain_times) == number % 2,
        ):
            times.append(timed(step))
    ratios = sorted(e / p for e, p in zip(engine_times, plain_times, strict=True))
    tokens = labels.numel()
    print(
        f"{machine.describe(ranks.device)}, torch {torch.__version__}, {'compiled' if arguments.compile else 'eager'}"
    )
    print(f"3 x 256, sequence 256, vocabulary {arguments.vocabulary:,}, {tokens:,} tokens a step, fp32, ZeRO-1")
    print(f"plain loop  {tokens / statistics.median(plain_times):8,.0f} tokens/s (median of {arguments.rounds})")
    print(f"engine      {tokens / statistics.median(engine_times):8,.0f} tokens/s (median of {arguments.rounds})")
    print(f"engine's time / plain loop's, pair by pair: median {statistics.median(ratios):.3f}", end="")
    print(f" (from {ratios[0]:.3f} to {ratios[-1]:.3f})")
    rate = machine.flops_per_second(ranks.device, torch.float32)
    used = plain.flops_per_token() * tokens / statistics.median(engine_times)
    print(f"share of the machine's matrix-product rate ({rate / 1e9:,.0f} GFLOP/s): {used / rate:.2f}")
    leave()


if __name__ == "__main__":
    main()
