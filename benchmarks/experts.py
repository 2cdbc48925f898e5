"""Experts beside dense models: held-out loss at equal tokens, equal active FLOPs and equal time; loads; throughput.

    python -m benchmarks.experts RUNS [CORPUS] [--tokens 10000000] [--seeds 0,1,2] [--shape 256x3] [--rounds 9]
                                 [--only speeds|train|table] [--compile]

`experts` has 8 experts, of which two and a shared one read a token; together they are as wide as the MLP of `dense`,
so both cost the same FLOPs a token. `large` is dense, with about as many parameters in all as `experts`: it has more
blocks. `large@flops` has as many FLOPs as `dense` in all, `experts@time` and `large@time` take as long: they have fewer
tokens, with the schedule of such a run. How many follows from steps taken in turns, uncompiled or with --compile; it
is kept in RUNS/speeds.json, and measured once. Runs are trained as benchmarks.variants' are, kept in RUNS, and not made
again.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import variants
from benchmarks.lookahead import corpus_preset, finished
from benchmarks.variants import Made
from engine import train
from engine.config import Preset
from engine.device import machine
from engine.device.ranks import join, leave, local_device
from engine.events import read
from model import TransformerLM

TRUNK: dict[str, Any] = variants.ALL | {"bias": False}
EXPERTS: dict[str, Any] = {"num_experts": 8, "experts_per_token": 2, "shared_experts": 1}
KEPT = "speeds.json"
POINTS = 10  # of a run, at which loads are shown


def preset(name: str, corpus: Path | None, shape: tuple[int, int], seed: int, layers: int = 0) -> Preset:
    """`layers`: in place of the shape's."""
    changes = TRUNK | (EXPERTS if name == "experts" else {}) | ({"num_layers": layers} if layers else {})
    sections = {"model": changes, "train": variants.MUON | {"compile": False, "log_interval_seconds": 5.0}}
    return corpus_preset(name, corpus, shape, seed, sections)


def on_meta(made: Preset) -> TransformerLM:
    with torch.device("meta"):
        return TransformerLM(made.model, variants.vocabulary(made))


def layers_of_large(corpus: Path | None, shape: tuple[int, int]) -> int:
    """The number of dense blocks that have about as many parameters as the model of experts."""
    aim = on_meta(preset("experts", corpus, shape, 0)).num_parameters()
    one, two = (on_meta(preset("large", corpus, shape, 0, layers)).num_parameters() for layers in (1, 2))
    return max(1, round((aim - one) / (two - one)) + 1)


def make_presets(corpus: Path | None, shape: tuple[int, int], seed: int) -> dict[str, Preset]:
    large = layers_of_large(corpus, shape)
    return {
        "dense": preset("dense", corpus, shape, seed),
        "experts": preset("experts", corpus, shape, seed),
        "large": preset("large", corpus, shape, seed, large),
    }


def relative_times(arguments: argparse.Namespace, presets: dict[str, Preset]) -> dict[str, float]:
    """The time of a step of each, relative to `dense`; measured once for a folder of runs."""
    path = arguments.runs / KEPT
    if not path.exists():
        arguments.runs.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(variants.speeds(presets, arguments.rounds, arguments.compile)))
    return json.loads(path.read_text())


def labelled_runs(relative: dict[str, float], flops: dict[str, int], seeds: list[int]) -> dict[str, list[Made]]:
    """By label the runs of all seeds."""
    shares = {
        "dense": ("dense", 1.0),
        "experts": ("experts", 1.0),
        "large": ("large", 1.0),
        "large@flops": ("large", flops["dense"] / flops["large"]),
        "experts@time": ("experts", 1 / relative["experts"]),
        "large@time": ("large", 1 / relative["large"]),
    }
    return {label: [Made(name, round(share, 3), seed) for seed in seeds] for label, (name, share) in shares.items()}


def loads(folder: Path) -> list[tuple[float, dict[str, float]]]:
    """(share of the run, MaxVio by block) at POINTS of a run, each the mean since the point before."""
    steps = [event for event in read(folder) if event["event"] == "step" and "auxiliary" in event]
    points = []
    for number in range(POINTS):
        within = [e for e in steps if number / POINTS < e["share"] <= (number + 1) / POINTS]
        if within:
            names = [name for name in within[0]["auxiliary"] if name.endswith("_max_violation")]
            mean = {name: statistics.mean(event["auxiliary"][name] for event in within) for name in names}
            points.append(((number + 1) / POINTS, mean))
    return points


def print_loads(runs: list[Made], folder: Path) -> None:
    print("\n  MaxVio, the fullest expert's load over the mean less 1, by block; means since the point before")
    for made in runs:
        for share, by_block in loads(folder / made.folder):
            figures = "  ".join(f"{value:6.3f}" for value in by_block.values())
            print(f"  seed {made.seed}, {share:4.0%} of the run  {figures}")


def print_shapes(presets: dict[str, Preset], relative: dict[str, float]) -> None:
    headings = f"{'blocks':>6} {'parameters':>12} {'active':>12} {'FLOP/token':>12} {'tokens/s against dense':>24}"
    print(f"  {'':10} {headings}")
    for name, made in presets.items():
        model = on_meta(made)
        print(
            f"  {name:10} {made.model.num_layers:6} {model.num_parameters():12,} {model.num_active_parameters():12,} "
            f"{model.flops_per_token():12,} {1 / relative[name]:24.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("corpus", type=Path, nargs="?")
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--shape", default="256x3", help="width x layers of dense and experts")
    parser.add_argument("--rounds", type=int, default=9, help="of steps in turns, for the speeds")
    parser.add_argument("--compile", action="store_true", help="what is timed")
    parser.add_argument("--only", choices=("speeds", "train", "table"))
    arguments = parser.parse_args()
    if arguments.corpus is not None and not arguments.corpus.is_dir():
        parser.error(f"{arguments.corpus} is no folder; a run would go on without its sources")
    width, layers = map(int, arguments.shape.split("x"))
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    presets = make_presets(arguments.corpus, (width, layers), seeds[0])
    relative = relative_times(arguments, presets)
    print(f"{machine.describe(local_device())}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    compiled = "compiled" if arguments.compile else "uncompiled"
    print(f"{arguments.shape}, sequence 256, {arguments.tokens:,} tokens; times are those of {compiled} steps")
    print_shapes(presets, relative)
    if arguments.only == "speeds":
        return
    flops = {name: on_meta(made).flops_per_token() for name, made in presets.items()}
    runs = labelled_runs(relative, flops, seeds)
    if arguments.only != "table":
        ranks = join()
        for made in [made for seed in range(len(seeds)) for own in runs.values() for made in own[seed : seed + 1]]:
            folder, budget = arguments.runs / made.folder, made.tokens(arguments.tokens)
            if not finished(folder, budget):
                print(f"training {made.folder}: {budget:,} tokens", flush=True)
                own = make_presets(arguments.corpus, (width, layers), made.seed)[made.variant]
                train(own, token_budget=budget, checkpoint_dir=folder, ranks=ranks)
        leave()
    if arguments.only == "train":
        return
    there = {
        label: [made for made in own if finished(arguments.runs / made.folder, made.tokens(arguments.tokens))]
        for label, own in runs.items()
    }
    missing = [made.folder for label, own in runs.items() for made in own if made not in there[label]]
    if missing:
        print(f"not finished: {', '.join(missing)}")
    finished_runs = [made for own in there.values() for made in own]
    if finished_runs:
        print("\n  equal FLOPs: experts, large@flops; equal time: experts@time, large@time, here by their shares:")
        for label in there:
            if "@" in label:
                print(f"  {label} is {runs[label][0].label}")
        variants.table(finished_runs, arguments.runs, arguments.tokens, relative)
        print_loads(there["experts"], arguments.runs)


if __name__ == "__main__":
    main()
