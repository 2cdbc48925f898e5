"""Tokens a second and peak memory beside the trainers a user would pick instead: same model, data, batch, precision.

    python -m benchmarks.train_speed [--races reference,offline] [--rows 32] [--rounds 5] [--steps 2] [--trainers ...]
                                     [--output FILE]

Every trainer is a process of its own (train_speed_workers.py); they take turns of a few steps, in another order each
round, so a shared machine's noise meets all alike. Ratios are medians over rounds. A peer that is not installed
(pip install transformers lightning litgpt) is left out and named. `alone` is ours for many steps on end, and how our
own time a token grows with the model and the sequence: on a GPU 100 million tokens of the reference shape in steps of
131,072, and a larger model, on a CPU a million of the offline preset's in steps of 8,192. `scaling` is ours in one
process and in two, over threads and ZeRO stages. On a GPU the reference shape's races (passes of 32,768 tokens, and the
preset's step of 131,072 in one) and `alone` are run, in some four minutes.
"""

import argparse
import contextlib
import functools
import importlib.util
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.train_speed_workers import Shape
from engine.device import machine
from engine.device.ranks import local_device
from model import ModelConfig, TransformerLM

RACES = {  # width, layers, length, vocabulary; rows of a step on a CPU and on a GPU
    "reference": ((256, 3, 256, 50_257), (32, 128)),
    "reference-step": ((256, 3, 256, 50_257), (512, 512)),
    "offline": ((256, 3, 256, 16_384), (32, 128)),
    "12x768": ((768, 12, 1024, 50_257), (4, 32)),
}
ON_CPU, ON_GPU = "reference,offline", "reference,reference-step,alone"
TRAINERS = {  # name: worker, compiled, package
    "ours, engine, compiled": ("ours", True, "torch"),
    "ours, engine, eager": ("ours", False, "torch"),
    "ours, torch's products": ("ours_torch", True, "torch"),  # where the kernel of model/products/ may multiply
    "ours, bare loop, compiled": ("ours_bare", True, "torch"),
    "plain loop, compiled": ("plain", True, "torch"),
    "plain loop, eager": ("plain", False, "torch"),
    "transformers Trainer, compiled": ("trainer", True, "transformers"),
    "transformers Trainer": ("trainer", False, "transformers"),
    "Lightning Fabric, compiled": ("fabric", True, "lightning"),
    "Lightning Fabric": ("fabric", False, "lightning"),
    "litgpt pretrain": ("litgpt", True, "litgpt"),
}
OURS, LEAN = next(iter(TRAINERS)), "the same, lean"  # see train_speed_workers.ours_lean
# Of the preset's whole step: those that have room beside one another on one GPU, the fastest peers among them.
OF_WHOLE_STEP = (OURS, "ours, bare loop, compiled", "plain loop, compiled", "Lightning Fabric, compiled")
# Tokens of a long run of ours alone, and of its steps, on a CPU and on a GPU.
LONG_RUN, STEP = (1_000_000, 100_000_000), (8192, 131_072)
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

    name: str  # one of TRAINERS, unless that is given by itself
    shape: Shape
    trainer: str = ""
    processes: int = 1  # which share the shape's rows
    threads: int = field(default_factory=torch.get_num_threads)  # of all processes
    stage: int = 1
    seconds: list[float] = field(default_factory=list)  # a step
    memory: int = 0  # bytes at the peak, of the largest process
    problem: str | None = None

    def start(self) -> None:
        worker, compiled, package = (TRAINERS | {LEAN: ("ours_lean", True, "torch")})[self.trainer or self.name]
        if importlib.util.find_spec(package) is None:
            self.problem = f"{package} is not installed"
            return
        shape, rows = self.shape, self.shape.rows // self.processes
        numbers = ",".join(map(str, (shape.width, shape.layers, shape.length, shape.vocabulary, rows)))
        command = [sys.executable, "-m", "benchmarks.train_speed_workers", worker, numbers, *["--compile"] * compiled]
        environment = os.environ | {
            "OMP_NUM_THREADS": str(self.threads // self.processes),
            "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",  # so that all of them fit beside one another
            "ZERO_STAGE": str(self.stage),
            "PRECISION": precision(),
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._workers, self._errors = [], []
        for launched in _launched(self.processes):
            with tempfile.NamedTemporaryFile("w", delete=False) as errors:  # unlike a pipe it is never full
                self._workers.append(subprocess.Popen(command, stderr=errors, env=environment | launched, **pipes))
            self._errors.append(Path(errors.name))
        if self._read():
            self.round(WARMUP)
            self.seconds.clear()

    def round(self, steps: int) -> None:
        if self.problem:
            return
        for worker in self._workers:
            worker.stdin.write(f"{steps}\n")
            worker.stdin.flush()
        if said := self._read():
            self.seconds.append(max(each["seconds"] for each in said) / steps)
            self.memory = max(each["memory"] for each in said)

    def stop(self) -> None:
        if self.problem is None:
            for worker in self._workers:
                worker.stdin.close()
            for worker, errors in zip(self._workers, self._errors, strict=True):
                worker.wait()
                errors.unlink()

    def _read(self) -> list[dict] | None:
        """What each worker says; nothing where one has ended."""
        lines = [worker.stdout.readline() for worker in self._workers]
        if all(lines):
            return [json.loads(line) for line in lines]
        number = lines.index("")
        for worker in self._workers:
            worker.kill()
            worker.wait()
        said = self._errors[number].read_text().strip().splitlines()
        self.problem = said[-1][:100] if said else f"ended with status {self._workers[number].returncode}"
        return None


@functools.cache
def precision() -> str:
    """What train.precision "auto" means here: without instructions for it, bf16 is tens of times slower than fp32."""
    return "bf16" if machine.native_bf16(local_device()) else "fp32"


def _launched(processes: int) -> list[dict[str, str]]:
    """What a launcher tells each of so many processes of this machine; nothing to one that is alone."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    of_all = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = ({"RANK": rank, "LOCAL_RANK": rank} | of_all for rank in range(processes))
    return [{key: str(value) for key, value in rank.items()} for rank in ranks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", help=f"on a CPU {ON_CPU}, on a GPU {ON_GPU}")
    parser.add_argument("--trainers", default="", help="parts of names, separated by commas; empty: all")
    parser.add_argument("--rows", type=int, help="a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="a round; 2 on a CPU, 5 on a GPU")
    parser.add_argument("--output", type=Path, help="write there instead of on the screen")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if arguments.output:
            file = stack.enter_context(arguments.output.open("w", buffering=1))
            stack.enter_context(contextlib.redirect_stdout(file))
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    device = local_device()
    on_gpu = device.type == "cuda"
    arguments.steps = arguments.steps or (5 if on_gpu else 2)
    # The count of a step's FLOPs is held against the data sheet's peak where there is one.
    dtype = torch.bfloat16 if precision() == "bf16" else torch.float32
    peak = machine.peak_flops(device, bf16=precision() == "bf16")
    rate = machine.flops_per_second(device, dtype)
    print(f"{machine.describe(device)}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    print(f"{precision()}; matrix products of (2048, 256) x (256, 4096) run at {rate / 1e9:,.0f} GFLOP/s", end="")
    print(f"; the data sheet's peak is {peak / 1e12:,.0f} TFLOP/s" if peak else "", flush=True)
    wanted = [part for part in arguments.trainers.split(",") if part]
    names = [name for name in TRAINERS if not wanted or any(part in name for part in wanted)]
    if on_gpu or precision() == "bf16":
        names = [name for name in names if TRAINERS[name][0] != "ours_torch"]
    for race_name in (arguments.races or (ON_GPU if on_gpu else ON_CPU)).split(","):
        if race_name == "alone":
            alone(arguments, on_gpu, peak, rate)
        elif race_name == "scaling":
            scaling(arguments, on_gpu, peak, rate)
        else:
            size, rows = RACES[race_name]
            shape = Shape(*size, arguments.rows or rows[on_gpu])
            racing = [name for name in names if race_name != "reference-step" or name in OF_WHOLE_STEP]
            contenders = [Contender(name, shape) for name in racing]
            with started(contenders, on_gpu):
                race(contenders, arguments)
            tell(contenders, arguments, peak, rate)


def alone(arguments: argparse.Namespace, on_gpu: bool, peak: float | None, rate: float) -> None:
    """Many steps on end, growth, and on a GPU a larger model, twice: all of a kind compile, then each is timed."""
    step, long_run, parts = STEP[on_gpu], LONG_RUN[on_gpu], 10
    name = "reference" if on_gpu else "offline"
    long = Contender(OURS, Shape(*RACES[name][0], step // 256))
    larger = [Contender(name, Shape(*RACES["12x768"][0], step // 1024)) for name in (OURS, LEAN) if on_gpu]
    growing = {label: Contender(OURS, Shape(*size, 16_384, step // size[2])) for label, size in GROWTH.items()}
    with started([long, *growing.values()], on_gpu):
        for _ in range(parts):
            long.round(math.ceil(long_run / step / parts))
        for contender in growing.values():
            race([contender], arguments)
    for contender in larger:  # each by itself: it needs a third of the memory
        with started([contender], on_gpu):
            race([contender], arguments)
    if long.problem is None:
        tokens = parts * math.ceil(long_run / step / parts) * step
        seconds = [tokens / parts / step * each for each in long.seconds]
        print(
            f"\n{OURS}, {name} shape: {tokens:,} tokens in {sum(seconds):.1f} s, {tokens / sum(seconds):,.0f} "
            f"tokens/s; the last tenth took {seconds[-1] / seconds[0]:.3f} of the first's time"
        )
    tell([long], arguments, peak, rate)
    if larger:
        tell(larger, arguments, peak, rate)
    growth(growing, step, arguments.rounds)


def scaling(arguments: argparse.Namespace, on_gpu: bool, peak: float | None, rate: float) -> None:
    """Ours on one process and on two, which share this machine's threads, or have a GPU each."""
    size, rows = RACES["offline"]
    shape, threads = Shape(*size, arguments.rows or rows[on_gpu]), torch.get_num_threads()
    one = Contender("1 process", shape, OURS)
    contenders = [one]
    if not on_gpu:
        contenders.append(Contender("1 process, half of the threads", shape, OURS, threads=max(1, threads // 2)))
    for stage in (0, 1, 2, 3):
        name = OURS if stage < 3 else "ours, engine, eager"  # a trainer that stage 3 works with
        contenders.append(Contender(f"2 processes, ZeRO-{stage}", shape, name, processes=2, stage=stage))
    with started(contenders, on_gpu):
        race(contenders, arguments)
    tell(contenders, arguments, peak, rate, one.name)


def tell(
    contenders: list[Contender], arguments: argparse.Namespace, peak: float | None, rate: float, first: str = OURS
) -> None:
    """The table of trainers of one shape, beside the one that is named `first`."""
    shape = contenders[0].shape
    flops, tokens = flops_per_token(shape), shape.rows * shape.length
    print(
        f"\n{shape.layers} x {shape.width}, sequence {shape.length}, vocabulary {shape.vocabulary:,}, "
        f"{tokens:,} tokens a step, {flops / 1e6:.1f} MFLOP a token; "
        f"median of {arguments.rounds} rounds of {arguments.steps} steps"
    )
    share_of = "MFU" if peak else "of the products"
    print(f"  {'':32} {'tokens/s':>9} {share_of:>16} {'peak memory':>12}   {first} / it, round by round")
    by_name = {contender.name: contender for contender in contenders}
    for contender in contenders:
        if contender.problem:
            print(f"  {contender.name:32} not measured: {contender.problem}")
            continue
        speed = tokens / statistics.median(contender.seconds)
        against = ""
        if first in by_name and not by_name[first].problem:
            ratios = sorted(a / b for a, b in zip(contender.seconds, by_name[first].seconds, strict=True))
            against = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        share = speed * flops / (peak or rate)
        print(
            f"  {contender.name:32} {speed:9,.0f} {share:16.3f} {contender.memory / 2**20:8,.0f} MiB   {against}",
            flush=True,
        )


@contextlib.contextmanager
def started(contenders: list[Contender], on_gpu: bool) -> Iterator[None]:
    """Their processes, ready to be timed. On a GPU most of a start is compiling, for which there are many cores."""
    with ThreadPoolExecutor(len(contenders) if on_gpu else 1) as pool:
        list(pool.map(Contender.start, contenders))
    yield
    for contender in contenders:
        contender.stop()


def race(contenders: list[Contender], arguments: argparse.Namespace) -> None:
    for number in range(arguments.rounds):
        turn = number % len(contenders)
        for contender in contenders[turn:] + contenders[:turn]:
            contender.round(arguments.steps)


def growth(contenders: dict[str, Contender], step: int, rounds: int) -> None:
    """Time a token against what the count of FLOPs predicts from the smallest."""
    print(f"\nvocabulary 16,384, {step:,} tokens a step, {OURS}; median of {rounds} rounds")
    print(f"  {'':14} {'MFLOP a token':>14} {'us a token':>11}   measured / predicted by the FLOPs of model 1x")
    first = None
    for label, contender in contenders.items():
        flops = flops_per_token(contender.shape)
        if contender.problem:
            print(f"  {label:14} {flops / 1e6:14.1f}   not measured: {contender.problem}")
            continue
        each = statistics.median(contender.seconds) / (contender.shape.rows * contender.shape.length)
        first = first or each / flops
        print(f"  {label:14} {flops / 1e6:14.1f} {each * 1e6:11.3f}   {each / flops / first:.2f}")


def flops_per_token(shape: Shape) -> float:
    config = ModelConfig(
        hidden_size=shape.width, num_layers=shape.layers, num_heads=shape.heads, seq_length=shape.length
    )
    with torch.device("meta"):
        return TransformerLM(config, shape.vocabulary).flops_per_token()


if __name__ == "__main__":
    main()
