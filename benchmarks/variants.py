"""Optimizers and options of the trunk beside one another: held-out loss after equal tokens, and after equal time.

    python -m benchmarks.variants RUNS [CORPUS] [--of adamw,muon,muon@0.5] [--tokens 10000000] [--seeds 0,1,2]
                                  [--texts mixed] [--shape 256x3] [--only train|table|speeds] [--at-once 1]
                                  [--rounds 9] [--compile] [--gpt2 FOLDER] [--list]

`muon@0.5` is a run of half the tokens, with the schedule of such a run: what a variant reaches in so much of the time.
`scales` is an option beside `now`, the trunk and optimizer of 02_offline_python in rows of 256, and
`now+scales+gates@0.5` are two of them; `rows-growing` are the rows of that preset. `--list` names all.
`--texts python,corpus` trains each run on `python_packages` alone and on the folders of CORPUS (NAME/data/*.parquet, by
their sizes) alone; `mixed` on both at once, as benchmarks.lookahead does. Where a variant has runs of several lengths,
the second table has its loss after the first variant's time and its time to the first's loss. `--only speeds` prints
how long a step of each takes, and so which share of the tokens takes the first one's time.
Runs are kept in RUNS and not made again. Speeds are those of steps taken in turns, one variant after the other, so a
shared machine's noise meets all alike. With --compile runs and the steps that are timed are compiled, as main.py's are:
a minute more for the first run of a model on a CPU, and a few seconds for the next ones, which find the code cached.
Bits per byte compare vocabularies; all other columns are of the same tokens. The validation loss is that of a variant's
own rows; where rows differ in length, a third table has that of whole held-out documents as `lm.score` reads them, in
windows that overlap by half.
"""

import argparse
import itertools
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.lookahead import corpus_preset, finished, train_apart
from benchmarks.overhead import real_bytes
from benchmarks.variants_figures import Point, interval, loss_at, time_to
from benchmarks.whole_documents import held_out_texts, print_whole_documents
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
    "now": {"train": MUON, "model": ALL | {"bias": False}},
}
# By name: changes to `now`, to be joined by +.
OPTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "embedding-norm": {"model": {"embedding_norm": True}},
    "scales": {"model": {"stream_scales": True}},
    "skips": {"model": {"skip_connections": True}},
    "values": {"model": {"value_embeddings": "tables"}},
    "value-projections": {"model": {"value_embeddings": "projections"}},
    "gates": {"model": {"attention_gates": True}},
    "exclusive": {"model": {"exclusive_attention": True}},
    "bigrams": {"model": {"bigram_rows": 16_384}},
    "bigrams-64k": {"model": {"bigram_rows": 65_536}},
    "context-1": {"model": {"embedding_context": 1}},
    "context-2": {"model": {"embedding_context": 2}},
    "context-3": {"model": {"embedding_context": 3}},
    "context-4": {"model": {"embedding_context": 4}},
    "context-8": {"model": {"embedding_context": 8}},
    "softcap": {"model": {"logit_softcap": 15.0}},
    "softcap-30": {"model": {"logit_softcap": 30.0}},
    "z-loss": {"model": {"z_loss": 1e-4}},
    "untied-head": {"model": {"tie_embeddings": False}},
    "zero-head": {"model": {"tie_embeddings": False, "head_init": "zero"}},
    "factorised": {"model": {"embedding_size": 128}},
    "cautious": {"train": {"cautious_weight_decay": True}},
    "decay-to-zero": {"train": {"weight_decay_schedule": "linear"}},
    "no-decay": {"train": {"weight_decay": 0.0}},
    "decay-0.2": {"train": {"weight_decay": 0.2}},
    "decay-0.4": {"train": {"weight_decay": 0.4}},
    "rates-embedding-0.5": {"train": {"embedding_rate_factor": 0.5}},
    "rates-embedding-2": {"train": {"embedding_rate_factor": 2.0}},
    "rates-embedding-4": {"train": {"embedding_rate_factor": 4.0}},
    "rates-head-0.3": {"train": {"head_rate_factor": 0.3}},
    "rates-head-2": {"train": {"head_rate_factor": 2.0}},
    "rates-scalar-0.3": {"train": {"scalar_rate_factor": 0.3}},
    "rates-scalar-4": {"train": {"scalar_rate_factor": 4.0}},
    "rate-3e-3": {"train": {"learning_rate": 3e-3}},
    "rate-7e-3": {"train": {"learning_rate": 7e-3}},
    "rate-1e-2": {"train": {"learning_rate": 1e-2}},
    "rate-1.4e-2": {"train": {"learning_rate": 1.4e-2}},
    "embedding-decay": {"train": {"embedding_weight_decay": 0.1}},
    "momentum-warmup": {"train": {"muon_momentum_warmup_fraction": 0.1}},
    "no-nesterov": {"train": {"muon_nesterov": False}},
    "normuon": {"train": {"muon_normalise_rows": True}},
    "soap": {"train": {"muon_soap": True}},
    "polar-express": {"train": {"muon_polynomial": "polar_express"}},
    "polar-express-6": {"train": {"muon_polynomial": "polar_express", "muon_iterations": 6}},
    "iterations-3": {"train": {"muon_iterations": 3}},
    "final-0": {"train": {"final_learning_rate_fraction": 0.0}},
    "final-5": {"train": {"final_learning_rate_fraction": 0.05}},
    "final-15": {"train": {"final_learning_rate_fraction": 0.15}},
    "linear": {"train": {"learning_rate_schedule": "linear"}},
    "linear-to-0": {"train": {"learning_rate_schedule": "linear", "final_learning_rate_fraction": 0.0}},
    "cooldown-40": {"train": {"learning_rate_schedule": "linear", "cooldown_fraction": 0.4}},
    "cooldown-60": {"train": {"learning_rate_schedule": "linear", "cooldown_fraction": 0.6}},
    "average-5": {"train": {"weight_average_fraction": 0.05}},
    "average-15": {"train": {"weight_average_fraction": 0.15}},
    "batch-8k": {"train": {"accumulation_steps": 2, "learning_rate": 7e-3}},
    "batch-16k": {"train": {"accumulation_steps": 4, "learning_rate": 1e-2}},
    "batch-2k": {"train": {"per_gpu_batch_size": 8, "learning_rate": 3.5e-3}},
    "batch-2k-5e-3": {"train": {"per_gpu_batch_size": 8}},
    "batch-1k": {"train": {"per_gpu_batch_size": 4, "learning_rate": 2.5e-3}},
    "rows-512": {"model": {"seq_length": 512}, "train": {"per_gpu_batch_size": 8}},
    "rows-1024": {"model": {"seq_length": 1024}, "train": {"per_gpu_batch_size": 4}},
    "rows-growing": {
        "model": {"seq_length": 1024},
        "train": {"per_gpu_batch_size": 4, "seq_length_schedule": [[0, 256], [0.5, 512], [0.85, 1024]]},
    },
    "growing": {"train": {"batch_doublings": [0.4, 0.7]}},
    "growing-from-2k": {"train": {"per_gpu_batch_size": 8, "learning_rate": 3.5e-3, "batch_doublings": [0.1, 0.4]}},
    "beta2-tokens": {"train": {"beta2_half_life_tokens": 200_000}},
    "beta2-short": {"train": {"beta2_half_life_tokens": 30_000}},
    "vocabulary-16k": {"data": {"tokenizer": {"train_bpe": 16384}}},
    "vocabulary-gpt2": {"data": {"tokenizer": "gpt2"}},
}
TEXTS = ("mixed", "python", "corpus")


QUESTIONS = {"gsm8k": {"fields": ["question", "answer"], "format": "Q: {question}\nA: {answer}"}}


@dataclass(frozen=True)
class Made:
    """One run that is trained already, or is to be."""

    variant: str
    share: float
    seed: int
    text: str = "mixed"

    @property
    def label(self) -> str:
        return self.variant + (f"@{self.share:g}" if self.share != 1.0 else "")

    @property
    def folder(self) -> str:
        return ("" if self.text == "mixed" else f"{self.text}/") + f"{self.label}-{self.seed}"

    def tokens(self, of_whole: int) -> int:
        return int(self.share * of_whole)


def preset(made: Made, corpus: Path | None, shape: tuple[int, int], compiled: bool = False) -> Preset:
    variant = sections_of(made.variant)
    sections = variant | {"train": variant["train"] | {"compile": compiled}}
    if made.text == "corpus":
        assert corpus is not None, "--texts corpus needs a folder CORPUS"
        weights = {
            path.name: float(size)
            for path in sorted(corpus.iterdir())
            if (size := sum(file.stat().st_size for file in path.glob("data/train-*.parquet")))
        }
        sources: list[dict[str, Any]] = [
            {"type": "hf", "name": name, "dataset": str(corpus / name)} | QUESTIONS.get(name, {}) for name in weights
        ]
        data = sections.get("data", {}) | {"sources": sources, "source_weights": weights}
        return corpus_preset(_name(made.variant), None, shape, made.seed, sections | {"data": data})
    own = None if made.text == "python" else corpus
    return corpus_preset(_name(made.variant), own, shape, made.seed, sections)


def sections_of(variant: str) -> dict[str, dict[str, Any]]:
    """The changes to a plain preset's sections that the parts of a variant's name stand for, the first one first.
    Raises KeyError for a part that is none."""
    first, *options = variant.split("+")
    merged = dict(VARIANTS["now" if first in OPTIONS else first])
    for name in [first, *options] if first in OPTIONS else options:
        for section, changes in OPTIONS[name].items():
            merged[section] = merged.get(section, {}) | changes
    return merged


def _name(variant: str) -> str:
    """As a preset's name, which has no +."""
    return variant.replace("+", " ")


def vocabulary(made: Preset) -> int:
    spec = made.data.tokenizer
    return spec.train_bpe if isinstance(spec, TrainBPE) else load_tokenizer(spec).vocab_size


def speeds(presets: dict[str, Preset], rounds: int, compiled: bool) -> dict[str, float]:
    """Seconds of a token in a step of each variant, relative to the first's in the same round; medians. Where rows
    grow, the mean over a run."""
    device = local_device()
    bf16 = machine.native_bf16(device)
    machine.keep_freed_memory(device)
    parts = {name: with_rows_of_one_length(made) for name, made in presets.items()}
    # all of them are compilations of one function
    torch._dynamo.config.recompile_limit = max(sum(map(len, parts.values())), torch._dynamo.config.recompile_limit)
    steps = {
        name: [(share / tokens_of_step(part), _stepper(part, device, bf16, compiled)) for share, part in of_run]
        for name, of_run in parts.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in presets}
    for number in range(rounds + 1):
        for name, of_run in steps.items():
            taken = 0.0
            for share, step in of_run:
                begin = time.perf_counter()
                step()
                taken += share * (time.perf_counter() - begin)
            if number:
                seconds[name].append(taken)
    first = next(iter(seconds.values()))
    return {name: statistics.median(a / b for a, b in zip(own, first, strict=True)) for name, own in seconds.items()}


def with_rows_of_one_length(made: Preset) -> list[tuple[float, Preset]]:
    """The parts of a run whose rows grow, as (share of its tokens, preset); else the run itself."""
    schedule = made.train.seq_length_schedule
    if not schedule:
        return [(1.0, made)]
    parts = []
    for (begin, length), (end, _) in itertools.pairwise([*schedule, (1.0, 0)]):
        rows = made.train.per_gpu_batch_size * made.model.seq_length // length
        model = made.model.model_copy(update={"seq_length": length})
        train = made.train.model_copy(update={"per_gpu_batch_size": rows, "seq_length_schedule": ()})
        parts.append((end - begin, made.model_copy(update={"model": model, "train": train})))
    return parts


def tokens_of_step(made: Preset) -> int:
    """At the end of a run, which has the largest steps."""
    train = made.train
    rows = train.per_gpu_batch_size * train.accumulation_steps * 2 ** len(train.batch_doublings)
    return rows * made.model.seq_length


def _stepper(made: Preset, device: torch.device, bf16: bool, compiled: bool):
    """A function that makes one step of that preset."""
    torch.manual_seed(0)
    model = TransformerLM(made.model, vocabulary(made)).to(device)
    optimizer = make_optimizer(model, made.train, bf16)
    if compiled:
        model.forward = torch.compile(model.forward)
    shape = made.train.per_gpu_batch_size, made.model.seq_length
    ids = real_bytes(math.prod(shape)).view(shape).to(device)
    micro_batches = tokens_of_step(made) // math.prod(shape)

    def step() -> None:
        for _ in range(micro_batches):
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
    print(
        f"  {'':22} {'tokens':>10} {'time':>6} {'validation loss':>15} {'bits/byte':>10}   loss less {first}'s, by seed"
    )
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
            f"  {label:22} {made.share * tokens / 1e6:8.2f} M {made.share * relative[made.variant]:6.2f} {ce:15.4f} "
            f"{bits:10.4f}   {'  '.join(f'{difference:+.4f}' for difference in against)}"
        )
    by_variant: dict[str, dict[int, list[Point]]] = {}
    for made in runs:
        time_taken = made.share * relative[made.variant]
        point = time_taken, figures[made.label, made.seed]["ce"]
        by_variant.setdefault(made.variant, {}).setdefault(made.seed, []).append(point)
    whole = {seed: figures[first, seed]["ce"] for seed in seeds if (first, seed) in figures}
    print(f"  {'':32} {'CE at equal time, less ' + first + chr(39) + 's':>36}   time to {first}'s CE, by seed")
    for variant, points in by_variant.items():
        if variant == runs[0].variant:
            continue
        reached = {seed: loss_at(points.get(seed, []), runs[0].share) for seed in whole}
        less = [loss - whole[seed] for seed, loss in reached.items() if loss is not None]
        times = [time_to(points.get(seed, []), loss) for seed, loss in whole.items()]
        print(
            f"  {variant:32} {interval(less) if less else '-':>36}   "
            + "  ".join("-" if found is None else f"{found[0].strip('=')}{found[1]:.2f}" for found in times)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("corpus", type=Path, nargs="?")
    parser.add_argument("--of", default="adamw,muon,muon@0.5")
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--texts", default="mixed", help="of mixed, python, corpus: each run on each of them alone")
    parser.add_argument("--list", action="store_true", help="names of variants, and of options of `now`")
    parser.add_argument("--shape", default="256x3", help="width x layers")
    parser.add_argument("--rounds", type=int, default=9, help="of steps in turns, for the speeds")
    parser.add_argument("--compile", action="store_true", help="runs, and the steps that are timed")
    parser.add_argument("--gpt2", help="a folder with GPT-2's tokenizer, where the hub cannot be reached")
    parser.add_argument("--only", choices=("train", "table", "speeds"))
    parser.add_argument("--at-once", type=int, default=1, help="processes that train")
    arguments = parser.parse_args()
    if arguments.corpus is not None and not arguments.corpus.is_dir():
        parser.error(f"{arguments.corpus} is no folder; a run would go on without its sources")
    if arguments.list:
        print(f"{' '.join(VARIANTS)}\n\noptions of now: {' '.join(OPTIONS)}")
        return
    texts = arguments.texts.split(",")
    if unknown := [text for text in texts if text not in TEXTS]:
        parser.error(f"--texts {','.join(unknown)} is none of {', '.join(TEXTS)}")
    if "corpus" in texts and arguments.corpus is None:
        parser.error("--texts corpus needs the folder CORPUS")
    if arguments.gpt2:
        VARIANTS["gpt2"]["data"]["tokenizer"] = OPTIONS["vocabulary-gpt2"]["data"]["tokenizer"] = arguments.gpt2
    width, layers = map(int, arguments.shape.split("x"))
    specs = [spec.partition("@") for spec in arguments.of.split(",")]
    for name, *_ in specs:
        if unknown := [part for part in name.split("+") if part not in VARIANTS | OPTIONS]:
            parser.error(f"--of {unknown[0]} is no variant; --list names all")
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    runs = [Made(name, float(share or 1.0), seed, text) for text in texts for seed in seeds for name, _, share in specs]

    def relative(of: list[Made]) -> dict[str, float]:
        presets = {made.variant: preset(made, arguments.corpus, (width, layers), arguments.compile) for made in of}
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
                made_of = preset(made, arguments.corpus, (width, layers), arguments.compile)
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
        f"{layers} x {width}, {arguments.tokens:,} tokens; "
        f"time relative to a whole run of {there[0].variant}, {'compiled' if arguments.compile else 'uncompiled'}"
    )
    of_time = relative(there)
    for text in texts:
        if of_text := [made for made in there if made.text == text]:
            if len(texts) > 1:
                print(f"on {text}:")
            table(of_text, arguments.runs, arguments.tokens, of_time)
            presets = [preset(made, arguments.corpus, (width, layers)) for made in of_text]
            if len({own.model.seq_length for own in presets}) > 1:
                folders = [arguments.runs / made.folder for made in of_text]
                texts_held_out = held_out_texts(folders[0], presets[0])
                print_whole_documents([made.label for made in of_text], folders, texts_held_out)


if __name__ == "__main__":
    main()
