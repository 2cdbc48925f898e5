"""Tokens a second and peak memory beside the trainers a user would pick instead: same model, data, batch, precision.

    python -m benchmarks.train_speed [--shapes reference,offline] [--rows 32] [--rounds 5] [--steps 2] [--trainers ...]
    python -m benchmarks.train_speed --growth      # how our own time a token grows with the model and the sequence

Every trainer is a process of its own (train_speed_workers.py); they take turns of a few steps, in another order each
round, so a shared machine's noise meets all alike. Ratios are medians over rounds. A peer that is not installed
(pip install transformers lightning litgpt) is left out and named.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field

import torch

from benchmarks.train_speed_workers import Shape
from engine import machine
from engine.ranks import local_device
from model import ModelConfig, TransformerLM

SHAPES = {  # width, layers, length, vocabulary
    "reference": (256, 3, 256, 50_257),
    "offline": (256, 3, 256, 16_384),
    "12x768": (768, 12, 1024, 50_257),
}
TRAINERS = {  # name: worker, compiled, package
    "ours, engine, compiled": ("ours", True, "torch"),
    "ours, engine, eager": ("ours", False, "torch"),
    "ours, bare loop, compiled": ("ours_bare", True, "torch"),
    "plain loop, compiled": ("plain", True, "torch"),
    "plain loop, eager": ("plain", False, "torch"),
    "transformers Trainer, compiled": ("trainer", True, "transformers"),
    "transformers Trainer": ("trainer", False, "transformers"),
    "Lightning Fabric, compiled": ("fabric", True, "lightning"),
    "Lightning Fabric": ("fabric", False, "lightning"),
    "litgpt pretrain": ("litgpt", True, "litgpt"),
}
OURS = next(iter(TRAINERS))
WARMUP = 3  # steps, compilation among them
GROWTH = {  # the model and the sequence 1, 4 and 16 times, at as many tokens a step: width, layers, length
    "model 1x": (256, 3, 256),
    "model 4x": (512, 3, 256),
    "model 16x": (1024, 3, 256),
    "sequence 4x": (256, 3, 1024),
    "sequence 16x": (256, 3, 4096),
}


@dataclass
class Contender:
    """One worker, and what its rounds took."""

    name: str
    shape: Shape
    seconds: list[float] = field(default_factory=list)  # a step
    memory: int = 0
    problem: str | None = None

    def start(self) -> None:
        worker, compiled, package = TRAINERS[self.name]
        if importlib.util.find_spec(package) is None:
            self.problem = f"{package} is not installed"
            return
        numbers = (self.shape.width, self.shape.layers, self.shape.length, self.shape.vocabulary, self.shape.rows)
        command = [sys.executable, "-m", "benchmarks.train_speed_workers", worker, ",".join(map(str, numbers))]
        self._process = subprocess.Popen(
            command + ["--compile"] * compiled,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        )
        self._read()
        self.round(WARMUP)
        self.seconds.clear()

    def round(self, steps: int) -> None:
        if self.problem:
            return
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        if said := self._read():
            self.seconds.append(said["seconds"] / steps)
            self.memory = said["memory"]

    def stop(self) -> None:
        if self.problem is None:
            self._process.stdin.close()
            self._process.wait(60)

    def _read(self) -> dict | None:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        _, errors = self._process.communicate()
        self.problem = (errors.strip().splitlines() or [f"ended with status {self._process.returncode}"])[-1][:100]
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="reference,offline")
    parser.add_argument("--trainers", default="", help="parts of names, separated by commas; empty: all")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="a round")
    parser.add_argument("--growth", action="store_true")
    arguments = parser.parse_args()
    device = local_device()
    rate = machine.flops_per_second(device, torch.bfloat16)
    print(f"{machine.describe(device)}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    print(f"bf16; matrix products of (2048, 256) x (256, 4096) run at {rate / 1e9:,.0f} GFLOP/s")
    if arguments.growth:
        growth(arguments)
        return
    wanted = [part for part in arguments.trainers.split(",") if part]
    names = [name for name in TRAINERS if not wanted or any(part in name for part in wanted)]
    for label in arguments.shapes.split(","):
        compare(label, Shape(*SHAPES[label], arguments.rows), names, arguments, rate)


def compare(label: str, shape: Shape, names: list[str], arguments: argparse.Namespace, rate: float) -> None:
    contenders = race([Contender(name, shape) for name in names], arguments)
    flops, tokens = flops_per_token(shape), shape.rows * shape.length
    print(
        f"\n{label}: {shape.layers} x {shape.width}, sequence {shape.length}, vocabulary {shape.vocabulary:,}, "
        f"{tokens:,} tokens a step, {flops / 1e6:.1f} MFLOP a token; "
        f"median of {arguments.rounds} rounds of {arguments.steps} steps"
    )
    print(f"  {'':32} {'tokens/s':>9} {'of the products':>16} {'peak memory':>12}   {OURS} / it, round by round")
    by_name = {contender.name: contender for contender in contenders}
    for contender in contenders:
        if contender.problem:
            print(f"  {contender.name:32} not measured: {contender.problem}")
            continue
        speed = tokens / statistics.median(contender.seconds)
        against = ""
        if OURS in by_name and not by_name[OURS].problem:
            ratios = sorted(a / b for a, b in zip(contender.seconds, by_name[OURS].seconds, strict=True))
            against = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        share = speed * flops / rate
        print(f"  {contender.name:32} {speed:9,.0f} {share:16.2f} {contender.memory / 2**20:8,.0f} MiB   {against}")


def race(contenders: list[Contender], arguments: argparse.Namespace) -> list[Contender]:
    for contender in contenders:
        contender.start()
    for number in range(arguments.rounds):
        turn = number % len(contenders)
        for contender in contenders[turn:] + contenders[:turn]:
            contender.round(arguments.steps)
    for contender in contenders:
        contender.stop()
    return contenders


def growth(arguments: argparse.Namespace) -> None:
    """Time a token against what the count of FLOPs predicts from the smallest."""
    tokens = arguments.rows * 256
    shapes = {label: Shape(*size, 16_384, max(1, tokens // size[2])) for label, size in GROWTH.items()}
    contenders = race([Contender(OURS, shape) for shape in shapes.values()], arguments)
    print(f"\nvocabulary 16,384, {tokens:,} tokens a step, {OURS}; median of {arguments.rounds} rounds")
    print(f"  {'':14} {'MFLOP a token':>14} {'us a token':>11}   measured / predicted by the FLOPs of model 1x")
    first = None
    for label, contender in zip(shapes, contenders, strict=True):
        flops = flops_per_token(contender.shape)
        if contender.problem:
            print(f"  {label:14} {flops / 1e6:14.1f}   not measured: {contender.problem}")
            continue
        each = statistics.median(contender.seconds) / (contender.shape.rows * contender.shape.length)
        first = first or each / flops
        print(f"  {label:14} {flops / 1e6:14.1f} {each * 1e6:11.1f}   {each / flops / first:.2f}")


def flops_per_token(shape: Shape) -> float:
    config = ModelConfig(
        hidden_size=shape.width, num_layers=shape.layers, num_heads=shape.heads, seq_length=shape.length
    )
    with torch.device("meta"):
        return TransformerLM(config, shape.vocabulary).flops_per_token()


if __name__ == "__main__":
    main()
