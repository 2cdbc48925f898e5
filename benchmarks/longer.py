"""Rows that grow: the loss by position beside long rows throughout and a sliding window, and the time that is saved.

    python -m benchmarks.longer RUNS [CORPUS] [--tokens 1000000] [--seeds 0] [--shape 128x2] [--lengths 64,256]
                                [--rows 16] [--share 0.85] [--of none,yarn] [--documents 200] [--rounds 9]
                                [--only train|table]

`long` has the longer rows throughout; `long@time` too, with as many tokens as it reads in the time of a run that grows.
`grow-yarn` has the shorter rows for --share of its tokens and the longer ones then, rotations scaled by yarn;
`grow-yarn+residual` has layer_rescaling beside. `extend-yarn` is a finished run on shorter rows (`before`) that goes on
with the longer ones. `short` has the shorter rows throughout and reads the documents through a sliding window of them.
--of names what is tried of none, linear, ntk, yarn, each alone or with +attention or +residual.

The loss is that of held-out documents of at least a long row, by the position in the document: up to a short row, up to
half of a long one, and the rest; and in short rows, each read by itself. Times are those of uncompiled steps taken in
turns, and are kept in RUNS/speeds.json. Runs are kept in RUNS and not made again. The whole measurement: --lengths
256,1024 --shape 256x3 --tokens 10000000 --seeds 0,1,2.
"""

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks import variants
from benchmarks.lookahead import corpus_preset, finished
from benchmarks.variants_figures import interval
from engine import train
from engine.checkpoint.folder import CURRENT
from engine.config import Preset
from engine.device import machine
from engine.device.ranks import join, leave, local_device
from model import LanguageModel, TransformerLM, load
from sources.registry import open_sources
from sources.rows.filters import is_held_out

KEPT = "speeds.json"
TRUNK: dict[str, Any] = variants.ALL | {"bias": False}
STRIDES = 4  # of a sliding window
KINDS = ("none", "linear", "ntk", "yarn")
ALL = "none,linear,ntk,yarn,none+attention,none+residual,yarn+attention,yarn+residual"


def preset(name: str, arguments: argparse.Namespace, seed: int) -> Preset:
    """That of a run's own rows; of `extend-...`, of its second part."""
    short, long = arguments.lengths
    what, _, way = name.partition("-")
    scaling, _, factors = way.partition("+")
    length = short if what in ("short", "before") else long
    model = TRUNK | {"seq_length": length, "rope_scaling": scaling or "none", "layer_rescaling": factors or "none"}
    settings = variants.MUON | {"compile": False, "log_interval_seconds": 5.0, "eval_tokens": 100_000}
    settings |= {"per_gpu_batch_size": arguments.rows * long // length, "eval_interval_tokens": 10**9}
    if what == "grow":
        settings["seq_length_schedule"] = [[0, short], [arguments.share, long]]
    shape = arguments.shape
    heads = {"num_heads": max(2, shape[0] // 64)}
    data = {"tokenizer": {"train_bpe": 4096}, "cache": True, "cache_dir": str(arguments.runs / "cache")}
    sections = {"model": model | heads, "train": settings, "data": data}
    return corpus_preset(name.replace("+", " "), arguments.corpus, shape, seed, sections)


def names_of(arguments: argparse.Namespace) -> list[str]:
    ways = arguments.of.split(",")
    return ["short", "before", "long", "long@time", *(f"{kind}-{way}" for kind in ("grow", "extend") for way in ways)]


def time_of_short(arguments: argparse.Namespace) -> float:
    """A token in short rows, relative to one in long rows; measured once for a folder of runs."""
    path = arguments.runs / KEPT
    if not path.exists():
        presets = {name: preset(name, arguments, 0) for name in ("long", "short")}
        arguments.runs.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(variants.speeds(presets, arguments.rounds, False)["short"]))
    return json.loads(path.read_text())


def budget_of(name: str, arguments: argparse.Namespace, short_time: float) -> int:
    """Tokens of a run; of `extend-...`, of its second part."""
    shares = {"before": arguments.share, "long@time": arguments.share * short_time + 1 - arguments.share}
    share = 1 - arguments.share if name.startswith("extend") else shares.get(name, 1.0)
    return int(share * arguments.tokens)


def train_missing(arguments: argparse.Namespace, short_time: float) -> None:
    ranks = join()
    for seed in arguments.seeds:
        for name in names_of(arguments):
            folder, budget = arguments.runs / f"{name}-{seed}", budget_of(name, arguments, short_time)
            if is_done(name, folder, budget):
                continue
            if name.startswith("extend") and not folder.exists():
                shutil.copytree(arguments.runs / f"before-{seed}", folder)
            print(f"training {folder.name}: {budget:,} tokens", flush=True)
            train(
                preset(name.replace("@time", ""), arguments, seed),
                token_budget=budget,
                checkpoint_dir=folder,
                ranks=ranks,
            )
    leave()


def is_done(name: str, folder: Path, budget: int) -> bool:
    """Whether a run has met its budget; of `extend-...`, the second part of it, which begins as a copy of the first."""
    runs = 2 if name.startswith("extend") else 1
    return finished(folder, budget) and load(folder / CURRENT).progress["run"] == runs


def long_documents(arguments: argparse.Namespace, lm: LanguageModel) -> torch.Tensor:
    """(N, L + 1) ids of the beginnings of held-out documents, each after an end-of-text id."""
    made, long = preset("long", arguments, arguments.seeds[0]), arguments.lengths[1]
    rows: list[list[int]] = []
    for source in open_sources(made.data).sources.values():
        for shard in range(source.num_shards):
            for text, _ in source.read(shard, None):
                if is_held_out(text) and len(text) > 2 * long:
                    ids = lm.encode(text[: 20 * long])
                    if len(ids) >= long:
                        rows.append([lm.eos_token_id, *ids[:long]])
                if len(rows) == arguments.documents:
                    return torch.tensor(rows)
    return torch.tensor(rows)


@torch.inference_mode()
def losses(model: TransformerLM, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Nats of each label, (N, T)."""
    parts = []
    for some, wanted in zip(inputs.split(8), labels.split(8), strict=True):
        logits = model.logits(model.hidden_states(some))
        parts.append(F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none"))
    return torch.cat(parts)


def by_position(model: TransformerLM, rows: torch.Tensor, short: int) -> torch.Tensor:
    """Nats of each position (L,); through a sliding window where the model has a shorter one."""
    inputs, labels = rows[:, :-1], rows[:, 1:]
    window, length = model.config.seq_length, labels.shape[1]
    if window >= length:
        return losses(model, inputs, labels).mean(0)
    found, stride = [losses(model, inputs[:, :window], labels[:, :window])], window // STRIDES
    for end in range(window + stride, length + 1, stride):
        seen = slice(end - window, end)
        found.append(losses(model, inputs[:, seen], labels[:, seen])[:, -stride:])
    return torch.cat(found, dim=1).mean(0)


def figures(folder: Path, rows: torch.Tensor, lengths: Sequence[int]) -> list[float]:
    """Nats in the three parts of a document, and in short rows that each begin anew."""
    model, (short, long) = load(folder / CURRENT).model, lengths
    positions = by_position(model, rows, short)
    parts = [positions[:short], positions[short : long // 2], positions[long // 2 :]]
    apart = [part.reshape(-1, short) for part in (rows[:, :-1], rows[:, 1:])]
    return [part.mean().item() for part in parts if len(part)] + [losses(model, *apart).mean().item()]


def print_table(arguments: argparse.Namespace, short_time: float) -> None:
    short, long = arguments.lengths
    grown = arguments.share * short_time + 1 - arguments.share
    times = {"short": short_time, "before": arguments.share * short_time, "long": 1.0, "long@time": grown}
    found: dict[str, dict[int, list[float]]] = {}
    for seed in arguments.seeds:
        rows = None
        for name in names_of(arguments):
            folder = arguments.runs / f"{name}-{seed}"
            if is_done(name, folder, budget_of(name, arguments, short_time)):
                rows = long_documents(arguments, load(folder / CURRENT)) if rows is None else rows
                found.setdefault(name, {})[seed] = figures(folder, rows, arguments.lengths)
    headings = [f"0-{short}", f"{short}-{long // 2}", f"{long // 2}-{long}", f"rows of {short}"]
    headings = headings if long > 2 * short else [headings[0], f"{short}-{long}", headings[-1]]
    print(f"  {'':22} {'time':>6} " + "".join(f"{heading:>14}" for heading in headings) + "   nats, mean of seeds")
    for name, by_seed in found.items():
        means = [statistics.mean(values) for values in zip(*by_seed.values(), strict=True)]
        print(f"  {name:22} {times.get(name, grown):6.3f} " + "".join(f"{mean:14.4f}" for mean in means))
    print(
        f"\n  A run that grows takes {1 - grown:.1%} less time than `long`; a token in short rows takes "
        f"{short_time:.3f} of the time of one in long rows."
    )
    print("  Nats less those of `long@time`, 95% intervals over seeds where there are several:")
    for name, by_seed in found.items():
        seeds = [seed for seed in by_seed if seed in found.get("long@time", {})]
        if name != "long@time" and seeds:
            pairs = [zip(by_seed[seed], found["long@time"][seed], strict=True) for seed in seeds]
            less = list(zip(*([own - other for own, other in pair] for pair in pairs), strict=True))
            print(f"  {name:22} " + "  ".join(f"{interval(values):>20}" for values in less))
    print(f"  Loss in rows of {short} against `before`:")
    for name, by_seed in found.items():
        if name.startswith("extend"):
            changes = [by_seed[seed][-1] / found["before"][seed][-1] - 1 for seed in by_seed if seed in found["before"]]
            print(f"  {name:22} " + "  ".join(f"{change:+.2%}" for change in changes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("corpus", type=Path, nargs="?")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--shape", default="128x2", help="width x layers")
    parser.add_argument("--lengths", default="64,256", help="tokens of short and long rows")
    parser.add_argument("--rows", type=int, default=16, help="long ones of a step")
    parser.add_argument("--share", type=float, default=0.85, help="of a run, on short rows")
    parser.add_argument("--of", default=ALL, help=f"ways, of {ALL} and others like them")
    parser.add_argument("--documents", type=int, default=200, help="held out, of which the loss is taken")
    parser.add_argument("--rounds", type=int, default=9, help="of steps in turns, for the speeds")
    parser.add_argument("--only", choices=("train", "table"))
    arguments = parser.parse_args()
    if arguments.corpus is not None and not arguments.corpus.is_dir():
        parser.error(f"{arguments.corpus} is no folder; a run would go on without its sources")
    for way in arguments.of.split(","):
        scaling, _, factors = way.partition("+")
        if scaling not in KINDS or factors not in ("", "attention", "residual"):
            parser.error(f"--of {way} is none of {', '.join(KINDS)}, alone or with +attention or +residual")
    width, layers = map(int, arguments.shape.split("x"))
    arguments.shape, arguments.lengths = (width, layers), [int(length) for length in arguments.lengths.split(",")]
    arguments.seeds = [int(seed) for seed in arguments.seeds.split(",")]
    short_time = time_of_short(arguments)
    if arguments.only != "table":
        train_missing(arguments, short_time)
    if arguments.only != "train":
        print(f"{machine.describe(local_device())}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
        lengths = " and ".join(map(str, arguments.lengths))
        print(f"{layers} x {width}, rows of {lengths}, {arguments.rows} long ones a step, {arguments.tokens:,} tokens")
        print_table(arguments, short_time)


if __name__ == "__main__":
    main()
