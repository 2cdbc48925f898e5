"""Whether the model looks ahead: models with the lookahead core on and off, and every claim beside what it must beat.

    python -m benchmarks.lookahead RUNS [CORPUS] [--methods off,on,off@1.25] [--tokens 10000000] [--seeds 0,1,2]
                                   [--only train|table] [--at-once 1]

`off@1.25` is a run of so many times the tokens: what the plain model reaches in the time that the core takes.

Trains 3 x 256 (or --shape 512x6), with the optimizer and the kind of trunk that 04_lookahead.json ships, on
`python_packages` and, where a folder CORPUS is given, on the English datasets in it (NAME/data/*.parquet), with the
project's own `train`. RUNS keeps a folder for each model: one that is finished is taken as it is, one that was stopped
goes on; the table leaves out what is not finished. It is printed over held-out documents that no model, no regression
and no head was fitted to. Intervals are 95%, from 1,000 resamples of documents, paired where two figures are compared.
A GPU waits for the host at this size: there --at-once trains several, each in a process of its own. What the core costs
is measured by benchmarks.lookahead_cost.
"""

import argparse
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.lookahead_rows import Probe, table
from benchmarks.lookahead_text import Text, collect
from engine import events, train
from engine.checkpoint.folder import CURRENT
from engine.config import Preset, load_preset, parse_preset
from engine.device import machine
from engine.device.ranks import join, leave, local_device
from model import load
from model.snapshot import file

ENGLISH = ("c4", "gsm8k", "news", "peps", "shakespeare", "speeches", "wikipedia")
PRESET = Path("configs/04_lookahead.json")
CORES = ("on", "attached")  # whose core comes from the preset
# What the expected information gain needs, cheaply: a value that learns it and a drafter that is taught by the text.
FORETELLS_GAIN = {
    "enable_value": True,
    "enable_draft": True,
    "draft_rollouts": 0,
    "draft_position_fraction": 1 / 16,
    "information_gain_weight": 0.1,
}
# By name: the auxiliary section's changes to "nothing on".
METHODS: dict[str, dict[str, Any]] = {
    "off": {},
    "curriculum": {"enable_curriculum": True, "curriculum_burn_in_tokens": 1_000_000},
    "adaptive": {"enable_adaptive_sources": True, "adaptive_interval_tokens": 250_000},
    "gain": FORETELLS_GAIN,  # trains the trunk of "off"
    "gain-0.25": {**FORETELLS_GAIN, "gain_weighting": 0.25},
    "gain-1": {**FORETELLS_GAIN, "gain_weighting": 1.0},
    "gain-attached": {**FORETELLS_GAIN, "value_detach_trunk": False},
    "gain-attached-0.5": {**FORETELLS_GAIN, "value_detach_trunk": False, "information_gain_weight": 0.5},
}


@dataclass(frozen=True)
class Model:
    """One run: what is on, its seed, and its tokens as a multiple of the others'."""

    method: str
    seed: int
    share: float = 1.0

    @property
    def label(self) -> str:
        return self.method + (f"@{self.share:g}" if self.share != 1.0 else "")

    @property
    def folder(self) -> str:
        return f"{self.label}-{self.seed}"

    def tokens(self, of_whole: int) -> int:
        return int(self.share * of_whole)


def preset(model: Model, corpus: Path | None, shape: tuple[int, int], changes: dict[str, Any]) -> Preset:
    """The run's preset; only `auxiliary` and the seed differ between two."""
    # not compiled: then a trunk that no objective reaches is that of `off` to the bit
    shipped = load_preset(PRESET)
    sections = {
        "model": {key: getattr(shipped.model, key) for key in ("positions", "norm", "qk_norm", "mlp")},
        "train": {key: getattr(shipped.train, key) for key in ("optimizer", "learning_rate")} | {"compile": False},
        "auxiliary": auxiliary(model.method) | changes,
    }
    return corpus_preset(model.method, corpus, shape, model.seed, sections)


def corpus_preset(
    name: str, corpus: Path | None, shape: tuple[int, int], seed: int, sections: dict[str, dict[str, Any]]
) -> Preset:
    """A small run on python_packages and the English of `corpus`, `sections` changing its sections."""
    sources: list[dict[str, Any]] = [{"type": "python_packages"}]
    for source in ENGLISH if corpus is not None else ():
        spec = {"type": "hf", "name": source, "dataset": str(corpus / source)}
        if source == "gsm8k":
            spec |= {"fields": ["question", "answer"], "format": "Q: {question}\nA: {answer}"}
        sources.append(spec)
    width, layers = shape
    values = {
        "model": {"hidden_size": width, "num_layers": layers, "num_heads": width // 64, "seq_length": 256},
        "train": {
            "per_gpu_batch_size": 16,
            "eval_tokens": 150_000,
            "eval_interval_tokens": 2_500_000,
            "log_interval_seconds": 60.0,
            "seed": seed,
        },
        "data": {"sources": sources, "tokenizer": {"train_bpe": 8192}, "mix_strategy": "weighted"}
        | ({"source_weights": {"python_packages": 4.0, "peps": 2.0}} if corpus is not None else {}),
        "auxiliary": {},
    }
    merged = {section: own | sections.get(section, {}) for section, own in values.items()}
    return parse_preset({"name": name, **merged})


def auxiliary(method: str) -> dict[str, Any]:
    """The section of one method; "on" is what 04_lookahead.json ships, "attached" the same with the trunk in reach of
    every objective but the value."""
    if method in METHODS:
        return METHODS[method]
    attached = {f"{part}_detach_trunk": False for part in ("policy", "dynamics", "span_contrastive")}
    shipped = load_preset(PRESET).auxiliary.model_dump(mode="json")
    return shipped | (attached if method == "attached" else {})


def finished(folder: Path, budget: int) -> bool:
    """Whether a run of that many tokens has come to its end there."""
    if not (folder / CURRENT).exists():
        return False
    progress = file.read(folder / CURRENT, verify=False).progress
    return bool(progress["finished"]) and progress["tokens_in_run"] >= budget


def train_missing(models: list[Model], arguments: argparse.Namespace) -> None:
    ranks = join()
    for model in models:
        folder, budget = arguments.runs / model.folder, model.tokens(arguments.tokens)
        if not finished(folder, budget):
            print(f"training {model.folder}: {budget:,} tokens", flush=True)
            changes = json.loads(arguments.changes) if model.method in CORES else {}
            made = preset(model, arguments.corpus, arguments.shape, changes)
            train(made, token_budget=budget, checkpoint_dir=folder, ranks=ranks)
    leave()


def train_apart(benchmark: str, option: str, models: list[Any], runs: Path, at_once: int) -> None:
    """Trains each of `models`, which have a label, a seed and a folder, by the benchmark's own command in a process of
    its own, so many at a time, as they are listed; `option` names labels to it. What they say is beside the folders."""
    runs.mkdir(parents=True, exist_ok=True)

    def train_one(model: Any) -> None:
        only = [option, model.label, "--seeds", str(model.seed), "--only", "train", "--at-once", "1"]
        only += ["--texts", model.text] if hasattr(model, "text") else []
        (runs / model.folder).parent.mkdir(parents=True, exist_ok=True)
        with (runs / f"{model.folder}.log").open("w") as log:
            ended = subprocess.run([sys.executable, "-m", benchmark, *sys.argv[1:], *only], stdout=log, stderr=log)
        print(f"{model.folder} ended with status {ended.returncode}", flush=True)

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(train_one, models))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("corpus", type=Path, nargs="?")
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default="off,on,off@1.25", help=f"of on, attached, {', '.join(METHODS)}")
    parser.add_argument("--shape", default="256x3", help="width x layers")
    parser.add_argument("--changes", default="{}", help="to the core's section, as JSON: for attempts")
    parser.add_argument("--held-out", type=int, default=600_000, help="held-out tokens for the table")
    parser.add_argument("--probe-tokens", type=int, default=1_300_000, help="training tokens for each fitted baseline")
    parser.add_argument("--baselines", action=argparse.BooleanOptionalAction, default=True, help="what is to be beaten")
    parser.add_argument("--only", choices=("train", "table"))
    parser.add_argument("--at-once", type=int, default=1, help="processes that train")
    arguments = parser.parse_args()
    if arguments.corpus is not None and not arguments.corpus.is_dir():
        parser.error(f"{arguments.corpus} is no folder; a run would go on without its sources")
    width, layers = arguments.shape.split("x")
    arguments.shape = int(width), int(layers)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    specs = [spec.partition("@") for spec in arguments.methods.split(",")]
    models = [Model(method, seed, float(share or 1.0)) for seed in seeds for method, _, share in specs]
    if arguments.only != "table" and arguments.at_once > 1:
        train_apart("benchmarks.lookahead", "--methods", models, arguments.runs, arguments.at_once)
    elif arguments.only != "table":
        train_missing(models, arguments)
    if arguments.only == "train":
        return
    device = local_device()
    print(f"{machine.describe(device)}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    there = [model for model in models if finished(arguments.runs / model.folder, model.tokens(arguments.tokens))]
    if missing := [model.folder for model in models if model not in there]:
        print(f"not finished: {', '.join(missing)}")
    models = there
    if not models:
        return
    loaded = {model: load(arguments.runs / model.folder / CURRENT, device) for model in models}
    first = preset(models[0], arguments.corpus, arguments.shape, {})
    text: Text = collect(first, loaded[models[0]], arguments.held_out, arguments.probe_tokens, device)
    recorded = {model: events.read(arguments.runs / model.folder) for model in models}
    for line in table(Probe(loaded, recorded, text, device), arguments.baselines):
        print(line, flush=True)


if __name__ == "__main__":
    main()
