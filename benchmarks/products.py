"""Matrix products and whole steps of the offline preset by torch and by the kernel of model/products/, in turns.

    python -m benchmarks.products [--parts products,steps,losses] [--rounds 15] [--steps 2]

Products: those of the preset's micro-batch, with GFLOP/s (the fastest of all rounds, and the median). Steps: the engine
as main.py has it, compiled, with the preset's optimizer and micro-batch; both ways take turns of a few steps in one
process, and ratios are medians over rounds. Losses: both ways train from the same weights on the same text.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks.train_speed_workers import Shape, batches
from engine.config import Preset, load_preset
from engine.device import deepspeed_engine, machine
from engine.device.compiling import compile_model
from engine.device.ranks import join
from engine.run.stability import StabilityGuard
from engine.run.step import StepRunner
from model import TransformerLM
from model.loss import chunk_tokens, even_chunk
from model.products.linear import by_kernel, product
from sources.loading.loader import Batch, BatchShape

WAYS = {"torch": False, "kernel": True}
VOCABULARY = 16_384
WARMUP = 2  # steps of each way, compilation among them


def shapes(preset: Preset) -> dict[str, tuple[int, int, int]]:
    """(tokens, inputs, outputs) of the linear layers of a micro-batch by name; the head's of one chunk."""
    width, tokens = preset.model.hidden_size, preset.train.per_gpu_batch_size * preset.model.seq_length
    chunk = even_chunk(tokens, chunk_tokens(torch.empty(VOCABULARY, 0)))
    layers = {"qkv": (width, 3 * width), "out": (width, width), "up": (width, 4 * width), "down": (4 * width, width)}
    return {name: (tokens, *sizes) for name, sizes in layers.items()} | {"head": (chunk, width, VOCABULARY)}


def products(preset: Preset, rounds: int) -> None:
    print(f"\nGFLOP/s, fastest of {rounds} rounds (median)")
    print(f"  {'':22}{'torch':>14}{'kernel':>14}   torch / kernel, median of rounds")
    for name, (tokens, inputs, outputs) in shapes(preset).items():
        x, weight = torch.randn(tokens, inputs), torch.randn(outputs, inputs)
        gradient = torch.randn(tokens, outputs)
        for which, a, b in (("output", x, weight.T), ("inputs", gradient, weight), ("weights", gradient.T, x)):
            out = torch.empty(len(a), b.shape[1])
            seconds: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(rounds):
                for way, enabled in WAYS.items():
                    with by_kernel(enabled):
                        seconds[way].append(timed(lambda a=a, b=b, out=out: product(a, b, out=out)))
            rates = {way: [2e-9 * tokens * inputs * outputs / each for each in taken] for way, taken in seconds.items()}
            shown = "".join(f"{max(rate):7.0f} ({statistics.median(rate):4.0f})" for rate in rates.values())
            ratios = [a / b for a, b in zip(seconds["torch"], seconds["kernel"], strict=True)]
            print(f"  {name + ', ' + which:22}{shown}   {statistics.median(ratios):.2f}", flush=True)


def timed(function: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


class Steps:
    """The engine over the preset's model, one step at a time, on text without end."""

    def __init__(self, preset: Preset, compiled: bool):
        torch.manual_seed(preset.train.seed)
        self.ranks, train, model = join(), preset.train, preset.model
        self.shape = BatchShape(train.per_gpu_batch_size, train.accumulation_steps, model.seq_length)
        language_model = TransformerLM(model, VOCABULARY, preset.auxiliary)
        self.engine = deepspeed_engine.initialize(language_model, train, self.shape, self.ranks, bf16=False)
        if compiled:
            compile_model(self.engine)
        self.guard = StabilityGuard(train.on_spike, train.max_skipped_steps)
        self.runner = StepRunner(self.engine, self.ranks, 1, train.gradient_clipping, preset.data.document_mask)
        self.batches = self._batches(preset)

    @property
    def tokens(self) -> int:
        return self.shape.rows_per_step * self.shape.seq_length

    def run(self) -> float:
        """One step; its loss."""
        result = self.runner.run(next(self.batches), self.tokens, self.guard)
        self.guard.after_step(result.loss, result.skipped)
        return result.loss

    def _batches(self, preset: Preset) -> Iterator[Batch]:
        size, shape = preset.model, self.shape
        dimensions = (shape.grad_accumulation_steps, shape.micro_batch_size)
        segments = torch.zeros(*dimensions, shape.seq_length, dtype=torch.int32)
        sources = torch.zeros(dimensions, dtype=torch.int64)
        rows = Shape(size.hidden_size, size.num_layers, shape.seq_length, VOCABULARY, shape.rows_per_step)
        for ids, labels in batches(rows):
            parts = (each.reshape(*dimensions, shape.seq_length) for each in (ids, labels))
            yield Batch(*parts, segments, sources, labels.numel(), 0, {}, [])


def steps(preset: Preset, rounds: int, number: int) -> None:
    trained = Steps(preset, compiled=True)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for round_number in range(-1, rounds):
        ways = list(WAYS) if round_number % 2 else list(WAYS)[::-1]
        for way in ways:
            with by_kernel(WAYS[way]):
                count = number if round_number >= 0 else WARMUP
                taken = timed(lambda count=count: [trained.run() for _ in range(count)])
            if round_number >= 0:
                seconds[way].append(taken / number)
    ratios = sorted(a / b for a, b in zip(seconds["torch"], seconds["kernel"], strict=True))
    print(f"\nsteps of {trained.tokens:,} tokens, compiled; {rounds} rounds of {number} in turns: tokens/s (the best)")
    for way, taken in seconds.items():
        print(f"  {way:8}{trained.tokens / statistics.median(taken):8,.0f} ({trained.tokens / min(taken):,.0f})")
    print(f"  kernel / torch, median of rounds {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")


def losses(preset: Preset, number: int) -> None:
    found = {}
    for way, enabled in WAYS.items():
        with by_kernel(enabled):
            trained = Steps(preset, compiled=False)
            found[way] = [trained.run() for _ in range(number)]
            trained.engine.destroy()
    apart = [abs(a - b) for a, b in zip(found["torch"], found["kernel"], strict=True)]
    print(f"\nlosses of {number} steps from the same weights: {found['torch'][0]:.4f} to {found['torch'][-1]:.4f}")
    print(f"  apart in the first step {apart[0]:.1e}, in ten at most {max(apart[:10]):.1e}, in all {max(apart):.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="configs/02_offline_python.json")
    parser.add_argument("--parts", default="products,steps,losses")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=2, help="of a round")
    parser.add_argument("--losses", type=int, default=30, help="steps whose losses are compared")
    chosen = parser.parse_args()
    preset, device = load_preset(chosen.preset), join().device
    machine.use_cores(device)
    machine.keep_freed_memory(device)
    print(f"{machine.describe(device)}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}, {chosen.preset}, fp32")
    parts = chosen.parts.split(",")
    if "products" in parts:
        products(preset, chosen.rounds)
    if "steps" in parts:
        steps(preset, chosen.rounds, chosen.steps)
    if "losses" in parts:
        losses(preset, chosen.losses)


if __name__ == "__main__":
    main()
