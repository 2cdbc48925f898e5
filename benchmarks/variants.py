"""Optimizers and options of the trunk beside one another: held-out loss after equal tokens, and after equal time.

    python -m benchmarks.variants RUNS [CORPUS] [--of adamw,muon,muon@0.5] [--tokens 10000000] [--seeds 0,1,2]
                                  [--shape 256x3] [--only train|table|speeds] [--at-once 1] [--rounds 9] [--compile]
                                  [--gpt2 FOLDER]

`muon@0.5` is a run of half the tokens, with the schedule of such a run: what a variant reaches in so much of the time.
`--only speeds` prints how long a step of each takes, and so which share of the tokens takes the first one's time.
Runs are trained on `python_packages` and the English of CORPUS as benchmarks.lookahead's are, kept in RUNS, and not
made again, uncompiled. Speeds are those of steps taken in turns, one variant after the other, so a shared machine's
noise meets all alike; with --compile of compiled ones, as main.py's are. Bits per byte compare vocabularies; all other
columns are of the same tokens.
"""

import argparse
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.lookahead import corpus_preset, finished, train_apart
from benchmarks.overhead import real_bytes
from engine import train
from engine.checkpoint.folder import CURRENT
from engine.config import Preset
from engine.device import machine
from engine.device.ranks import join, leave, local_device
from engine.optim.optimizers import make_optimizer
from model import TransformerLM
from model.snapshot import file
from sources.config import TrainBPE
from sources.rows.tokenizer import load_tokenizer

MUON: dict[str, Any] = {"optimizer": "muon", "learning_rate": 5e-3}
ALL: dict[str, Any] = {"positions": "rotary", "norm": "rms", "qk_norm": True, "mlp": "squared_relu"}
# By name: changes to the sections of a plain preset with AdamW.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "adamw-1e-3": {"train": {"learning_rate": 1e-3}},
    "adamw": {"train": {"learning_rate": 2e-3}},
    "adamw-4e-3": {"train": {"learning_rate": 4e-3}},
    "muon-2e-3": {"train": MUON | {"learning_rate": 2e-3}},
    "muon": {"train": MUON},
    "muon-1e-2": {"train": MUON | {"learning_rate": 1e-2}},
    "muon-to-zero": {"train": MUON | {"final_learning_rate_fraction": 0.0}},
    "rotary": {"train": MUON, "model": {"positions": "rotary"}},
    "rms": {"train": MUON, "model": {"norm": "rms"}},
    "qk-norm": {"train": MUON, "model": {"qk_norm": True}},
    "squared-relu": {"train": MUON, "model": {"mlp": "squared_relu"}},
    "swiglu": {"train": MUON, "model": {"mlp": "swiglu"}},
    "all": {"train": MUON, "model": ALL},
    "all-no-bias": {"train": MUON, "model": ALL | {"bias": False}},
    "all-but-qk-norm": {"train": MUON, "model": ALL | {"qk_norm": False}},
    "all-but-squared-relu": {"train": MUON, "model": ALL | {"mlp": "gelu"}},
    "no-bias": {"train": MUON, "model": {"bias": False}},
    "untied": {"train": MUON, "model": {"tie_embeddings": False}},
    "bpe-4096": {"train": MUON, "data": {"tokenizer": {"train_bpe": 4096}}},
    "bpe-16384": {"train": MUON, "data": {"tokenizer": {"train_bpe": 16384}}},
    "gpt2": {"train": MUON, "data": {"tokenizer": "gpt2"}},
}


@dataclass(frozen=True)
class Made:
    """One run that is trained already, or is to be."""

    variant: str
    share: float
    seed: int

    @property
    def label(self) -> str:
        return self.variant + (f"@{self.share:g}" if self.share != 1.0 else "")

    @property
    def folder(self) -> str:
        return f"{self.label}-{self.seed}"

    def tokens(self, of_whole: int) -> int:
        return int(self.share * of_whole)


def preset(made: Made, corpus: Path | None, shape: tuple[int, int]) -> Preset:
    variant = VARIANTS[made.variant]
    # not compiled: that would take longer than so short a run gains by it
    sections = variant | {"train": variant["train"] | {"compile": False}}
    return corpus_preset(made.variant, corpus, shape, made.seed, sections)


def vocabulary(made: Preset) -> int:
    spec = made.data.tokenizer
    return spec.train_bpe if isinstance(spec, TrainBPE) else load_tokenizer(spec).vocab_size


def speeds(presets: dict[str, Preset], rounds: int, compiled: bool) -> dict[str, float]:
    """Seconds of a step of each variant, relative to the first's in the same round; medians."""
    device = local_device()
    bf16 = machine.native_bf16(device)
    machine.keep_freed_memory(device)
    # all of them are compilations of one function
    torch._dynamo.config.recompile_limit = max(len(presets), torch._dynamo.config.recompile_limit)
    steps = {name: _stepper(made, device, bf16, compiled) for name, made in presets.items()}
    seconds: dict[str, list[float]] = {name: [] for name in presets}
    for number in range(rounds + 1):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            if number:
                seconds[name].append(time.perf_counter() - begin)
    first = next(iter(seconds.values()))
    return {name: statistics.median(a / b for a, b in zip(own, first, strict=True)) for name, own in seconds.items()}


def _stepper(made: Preset, device: torch.device, bf16: bool, compiled: bool):
    """A function that makes one step of that preset."""
    torch.manual_seed(0)
    model = TransformerLM(made.model, vocabulary(made)).to(device)
    optimizer = make_optimizer(model, made.train, bf16)
    if compiled:
        model.forward = torch.compile(model.forward)
    shape = made.train.per_gpu_batch_size, made.model.seq_length
    ids = real_bytes(math.prod(shape)).view(shape).to(device)

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            loss_sum, *_ = model(ids, ids.roll(-1, 1))
        (loss_sum / ids.numel()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def table(runs: list[Made], folder: Path, tokens: int, relative: dict[str, float]) -> None:
    first = runs[0].label
    figures = {}
    for made in runs:
        contents = file.read(folder / made.folder / CURRENT, verify=False)
        figures[made.label, made.seed] = contents.progress["evaluation"]
    seeds = sorted({made.seed for made in runs})
    print(f"  {'':22} {'tokens':>10} {'time':>6} {'held-out CE':>12} {'bits/byte':>10}   CE less {first}'s, by seed")
    for label in dict.fromkeys(made.label for made in runs):
        made = next(made for made in runs if made.label == label)
        own = [figures[label, seed] for seed in seeds if (label, seed) in figures]
        against = [
            figures[label, seed]["ce"] - figures[first, seed]["ce"]
            for seed in seeds
            if (label, seed) in figures and (first, seed) in figures
        ]
        ce, bits = (statistics.mean(each[key] for each in own) for key in ("ce", "bits_per_byte"))
        print(
            f"  {label:22} {made.share * tokens / 1e6:8.2f} M {made.share * relative[made.variant]:6.2f} {ce:12.4f} "
            f"{bits:10.4f}   {'  '.join(f'{difference:+.4f}' for difference in against)}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("corpus", type=Path, nargs="?")
    parser.add_argument("--of", default="adamw,muon,muon@0.5")
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--shape", default="256x3", help="width x layers")
    parser.add_argument("--rounds", type=int, default=9, help="of steps in turns, for the speeds")
    parser.add_argument("--compile", action="store_true", help="what is timed")
    parser.add_argument("--gpt2", help="a folder with GPT-2's tokenizer, where the hub cannot be reached")
    parser.add_argument("--only", choices=("train", "table", "speeds"))
    parser.add_argument("--at-once", type=int, default=1, help="processes that train")
    arguments = parser.parse_args()
    if arguments.corpus is not None and not arguments.corpus.is_dir():
        parser.error(f"{arguments.corpus} is no folder; a run would go on without its sources")
    if arguments.gpt2:
        VARIANTS["gpt2"]["data"]["tokenizer"] = arguments.gpt2
    width, layers = map(int, arguments.shape.split("x"))
    specs = [spec.partition("@") for spec in arguments.of.split(",")]
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    runs = [Made(name, float(share or 1.0), seed) for seed in seeds for name, _, share in specs]

    def relative(of: list[Made]) -> dict[str, float]:
        presets = {made.variant: preset(made, arguments.corpus, (width, layers)) for made in of}
        return speeds(presets, arguments.rounds, arguments.compile)

    if arguments.only == "speeds":
        for name, step in relative(runs).items():
            print(f"  {name:22} {step:6.3f} of the time of {runs[0].variant}: {name}@{1 / step:.2f}")
        return
    if arguments.only != "table" and arguments.at_once > 1:
        train_apart("benchmarks.variants", "--of", runs, arguments.runs, arguments.at_once)
    elif arguments.only != "table":
        ranks = join()
        for made in runs:
            folder, budget = arguments.runs / made.folder, made.tokens(arguments.tokens)
            if not finished(folder, budget):
                print(f"training {made.folder}: {budget:,} tokens", flush=True)
                made_of = preset(made, arguments.corpus, (width, layers))
                train(made_of, token_budget=budget, checkpoint_dir=folder, ranks=ranks)
        leave()
    if arguments.only == "train":
        return
    print(f"{machine.describe(local_device())}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    there = [made for made in runs if finished(arguments.runs / made.folder, made.tokens(arguments.tokens))]
    if missing := [made.folder for made in runs if made not in there]:
        print(f"not finished: {', '.join(missing)}")
    if not there:
        return
    print(
        f"{layers} x {width}, sequence 256, {arguments.tokens:,} tokens; "
        f"time relative to a whole run of {there[0].variant}, {'compiled' if arguments.compile else 'uncompiled'}"
    )
    table(there, arguments.runs, arguments.tokens, relative(there))


if __name__ == "__main__":
    main()
