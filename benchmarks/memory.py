"""Memory tokens beside what they must beat: how much of the loss that a window's edge costs they win back.

    python -m benchmarks.memory RUNS [CORPUS] [--tokens 2000000] [--seeds 0] [--shape 128x2] [--window 128] [--ratio 8]
                                [--segments 4] [--weight 0.1] [--vocabulary 4096] [--held-out 400000]
                                [--rounds 9] [--only speeds|train|table]

Trains on `python_packages` and, where a folder CORPUS is given, on the PEPs and the documentation in it (peps and docs,
NAME/data/*.parquet), whose documents are long; runs are kept in RUNS and not made again. All have as many tokens and,
but for rounding, as many tokens a step:

    without         windows by themselves
    memory          ratio : 1 memory tokens, rows of --segments windows
    memory+recon    the same with the reconstruction at --weight
    raw             windows that are longer by as many raw tokens as there are memory tokens
    full            windows that are four times as long
    memory@time     `memory` with as many tokens as it makes in the time of `without` (steps taken in turns; kept in
                    RUNS/speeds.json)

Judged are the second and third windows of held-out documents of more than three, all methods on the same labels:

    R = (NLL without - NLL of a method) / (NLL without - NLL of full, which reads the document from its beginning)

`cut` is the memory model whose memory is taken away, `shuffled` the one that gets the memory of another document.
`first` is the loss of the first windows of long documents and `short` that of documents of at most one window, which
have no memory; `beyond` that of `lm.score` behind a long document's first window, where windows overlap by half.
Intervals are 95%, from 1,000 resamples of documents, paired.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import variants
from benchmarks.lookahead import corpus_preset, finished
from engine import train
from engine.checkpoint.folder import CURRENT
from engine.config import Preset
from engine.device.machine import describe
from engine.device.ranks import join, leave, local_device
from engine.optim.optimizers import make_optimizer
from model import LanguageModel, TransformerLM, load
from sources.held_out import collect_validation_set
from sources.registry import open_sources
from sources.rows.tokenizer import TextTokenizer

ROW_TOKENS = 4096  # of a step
RESAMPLES = 1000
METHODS = ("without", "cut", "shuffled", "memory", "memory+recon", "raw", "full")
TRUNK: dict[str, Any] = variants.ALL | {"bias": False}
WEIGHTS = {"python_packages": 2.0, "peps": 1.0, "docs": 2.0}


@dataclass(frozen=True)
class Sizes:
    """Of the comparison."""

    shape: tuple[int, int]
    window: int
    ratio: int
    segments: int
    weight: float
    vocabulary: int
    cache: Path  # with it the tokenizer is trained once

    @property
    def tokens(self) -> int:
        """Memory tokens."""
        return self.window // self.ratio


@dataclass(frozen=True)
class Made:
    """One run: what is trained, and its tokens as a share of the others'."""

    name: str
    seed: int
    share: float = 1.0

    @property
    def label(self) -> str:
        return self.name + ("@time" if self.share != 1.0 else "")

    @property
    def folder(self) -> str:
        return f"{self.label}-{self.seed}"


def preset(name: str, corpus: Path | None, sizes: Sizes, seed: int) -> Preset:
    length = {"raw": sizes.window + sizes.tokens, "full": 4 * sizes.window}.get(name, sizes.window)
    remembers = name.startswith("memory")
    segments = sizes.segments if remembers else 1
    rows = max(1, ROW_TOKENS // (length * segments)) * segments
    model = TRUNK | {"seq_length": length} | ({"memory_tokens": sizes.tokens} if remembers else {})
    options = {"per_gpu_batch_size": rows} | ({"memory_segments": segments} if remembers else {})
    data: dict[str, Any] = {"tokenizer": {"train_bpe": sizes.vocabulary}, "cache": True, "cache_dir": str(sizes.cache)}
    if corpus is not None:
        english = [{"type": "hf", "name": name, "dataset": str(corpus / name)} for name in ("peps", "docs")]
        data |= {"sources": [{"type": "python_packages"}, *english], "source_weights": WEIGHTS}
    sections: dict[str, dict[str, Any]] = {
        "model": model,
        "train": variants.MUON | {"compile": False, "eval_tokens": 100_000} | options,
        "data": data,
        "auxiliary": {"memory_reconstruction_weight": sizes.weight} if name == "memory+recon" else {},
    }
    return corpus_preset(name.replace("+", " "), corpus, sizes.shape, seed, sections)


def relative_times(runs: Path, corpus: Path | None, sizes: Sizes, rounds: int) -> dict[str, float]:
    """Seconds of a token in a step of each, relative to `without`; measured once for a folder of runs."""
    path = runs / "speeds.json"
    if not path.exists():
        runs.mkdir(parents=True, exist_ok=True)
        names = ("without", "memory", "memory+recon", "raw", "full")
        steps = {name: _stepper(preset(name, corpus, sizes, 0)) for name in names}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for number in range(rounds + 1):
            for name, (step, tokens) in steps.items():
                begin = time.perf_counter()
                step()
                if number:
                    seconds[name].append((time.perf_counter() - begin) / tokens)
        first = seconds["without"]
        relative = {n: statistics.median(a / b for a, b in zip(s, first, strict=True)) for n, s in seconds.items()}
        path.write_text(json.dumps(relative))
    return json.loads(path.read_text())


def _stepper(made: Preset) -> tuple[Callable[[], None], int]:
    """A function that makes one step, and the step's tokens."""
    device = local_device()
    torch.manual_seed(0)
    model = TransformerLM(made.model, variants.vocabulary(made), made.auxiliary).to(device)
    optimizer = make_optimizer(model, made.train, bf16=False)
    rows = made.train.per_gpu_batch_size // made.windows
    ids = torch.randint(model.vocab_size, (rows, made.windows * made.model.seq_length), device=device)
    documents = torch.zeros_like(ids) if model.memory is not None else None

    def step() -> None:
        loss_sum, *_ = model(ids, ids.roll(-1, 1), documents=documents)
        (loss_sum / ids.numel()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step, ids.numel()


@dataclass(frozen=True)
class Documents:
    """Held-out documents as ids, each after an end-of-text id; by source."""

    long: dict[str, Tensor]  # (N, 3 * window + 1)
    whole: dict[str, list[Tensor]]  # of the same documents, all of each
    short: list[Tensor]  # at most a window each


def collect(made: Preset, lm: LanguageModel, window: int, held_out_tokens: int) -> Documents:
    opened = open_sources(made.data)
    tokenizer = TextTokenizer.from_json(lm.tokenizer.to_str(), lm.eos_token_id)
    found = collect_validation_set(opened.sources, made.data, tokenizer, seq_length=window, eval_tokens=held_out_tokens)
    long: dict[str, Tensor] = {}
    whole: dict[str, list[Tensor]] = {}
    short = []
    for source, texts in found.texts.items():
        documents = [torch.tensor([lm.eos_token_id, *lm.encode(text), lm.eos_token_id]) for text in texts]
        if fitting := [ids for ids in documents if len(ids) > 3 * window + 1]:
            long[source] = torch.stack([ids[: 3 * window + 1] for ids in fitting])
            whole[source] = fitting
        short += [ids for ids in documents if 2 < len(ids) <= window + 1]
    return Documents(long, whole, short)


@torch.no_grad()
def window_nll(model: TransformerLM, rows: Tensor, window: int, method: str, extra: int) -> Tensor:
    """rows (N, 3 * window + 1) -> (N,): the mean NLL of the second and third windows' labels."""
    sums = torch.zeros(len(rows))
    device = model.final_norm.weight.device
    for part in torch.arange(len(rows)).split(16):
        own = rows[part].to(device)
        for number in (1, 2):
            start, end = number * window, (number + 1) * window
            if method in ("memory", "memory+recon", "shuffled"):
                ids = own[:, :end].clone()
                if method == "shuffled":
                    others = rows[(part + 1) % len(rows)].to(device)
                    ids[:, :start] = others[:, :start]
                labels = torch.full_like(ids, -100)
                labels[:, start:] = own[:, start + 1 : end + 1]
                output = model(ids, labels, documents=torch.zeros_like(ids))
            else:
                first = {"raw": start - extra, "full": 0}.get(method, start)
                ids, labels = own[:, first:end], own[:, first + 1 : end + 1].clone()
                labels[:, : start - first] = -100
                output = model(ids, labels)
            sums[part] += output.token_nll.sum(dim=1).cpu()
    return sums / (2 * window)


@torch.no_grad()
def short_nll(model: TransformerLM, documents: list[Tensor]) -> Tensor:
    device = model.final_norm.weight.device
    found = []
    for ids in documents:
        own = ids.to(device)
        found.append(model(own[None, :-1], own[None, 1:]).token_nll.mean().cpu())
    return torch.stack(found)


def beyond(lm: LanguageModel, documents: list[Tensor], window: int, most: int = 40) -> Tensor:
    """The mean NLL behind the first window, as lm.score reads documents, up to eight windows of each."""
    found = []
    for ids in documents[:most]:
        text = lm.tokenizer.decode(ids[1 : 8 * window].tolist())
        found.append(lm.score(text).token_nll[window:].mean())
    return torch.stack(found)


def interval(figure: Callable[[Tensor], Tensor], count: int) -> str:
    """A figure of documents, with its 95% interval; `figure` takes the numbers of the documents that count."""
    generator = torch.Generator().manual_seed(0)
    drawn = sorted(float(figure(torch.randint(count, (count,), generator=generator))) for _ in range(RESAMPLES))
    whole = float(figure(torch.arange(count)))
    return f"{whole:+.3f} [{drawn[int(0.025 * RESAMPLES)]:+.3f}, {drawn[int(0.975 * RESAMPLES)]:+.3f}]"


def print_table(nll: dict[str, Tensor], heading: str) -> None:
    """nll: by method (N,), the means over the seeds."""
    count = len(nll["without"])
    print(f"\n  {heading}, {count} documents")
    print(f"  {'':14} {'NLL':>8}   {'less without':>26}   {'R':>26}")
    gap = nll["without"] - nll["full"]
    for method, own in nll.items():
        saved = nll["without"] - own
        less = interval(lambda at, own=saved: -own[at].mean(), count)
        recovered = interval(lambda at, own=saved: own[at].mean() / gap[at].mean(), count)
        print(f"  {method:14} {own.mean():8.4f}   {less:>26}   {recovered:>26}")


def table(made: list[Made], arguments: argparse.Namespace, sizes: Sizes) -> None:
    device = local_device()
    lms = {run: load(arguments.runs / run.folder / CURRENT, device, "fp32") for run in made}
    if len({lm.tokenizer.to_str() for lm in lms.values()}) > 1:
        raise SystemExit(
            "The texts changed between the runs, and with them the tokenizer; remove RUNS and start again."
        )
    first = made[0]
    documents = collect(preset(first.name, arguments.corpus, sizes, 0), lms[first], sizes.window, arguments.held_out)
    found: dict[str, dict[str, list[Tensor]]] = {}
    first_windows = [ids[: sizes.window + 1] for own in documents.whole.values() for ids in own]
    begin: dict[str, list[Tensor]] = {}
    short: dict[str, list[Tensor]] = {}
    later: dict[str, list[Tensor]] = {}  # than the first window
    for run, lm in lms.items():
        methods = [run.label, "cut", "shuffled"] if run.label == "memory" else [run.label]
        for method in methods:
            reads = method.removesuffix("@time")
            for source, rows in documents.long.items():
                of_source = window_nll(lm.model, rows, sizes.window, reads, sizes.tokens)
                found.setdefault(source, {}).setdefault(method, []).append(of_source)
        begin.setdefault(run.label, []).append(short_nll(lm.model, first_windows))
        short.setdefault(run.label, []).append(short_nll(lm.model, documents.short))
        if run.name not in ("raw", "full"):
            every = [ids for own in documents.whole.values() for ids in own]
            later.setdefault(run.label, []).append(beyond(lm, every, sizes.window))
    order = [*METHODS, "memory@time"]
    means = {source: {m: torch.stack(own[m]).mean(dim=0) for m in order if m in own} for source, own in found.items()}
    for source, own in means.items():
        print_table(own, source)
    if len(means) > 1:
        together = {m: torch.cat([own[m] for own in means.values()]) for m in next(iter(means.values()))}
        print_table(together, "all sources")
    for heading, figures in (("first", begin), ("short", short), ("beyond", later)):
        base = torch.stack(figures["without"]).mean(dim=0)
        print(f"\n  {heading}: {'NLL':>10}   {'less without':>26}")
        for label, per_seed in figures.items():
            own = torch.stack(per_seed).mean(dim=0)
            less = interval(lambda at, less=own - base: less[at].mean(), len(base))
            print(f"  {label:14} {own.mean():8.4f}   {less:>26}")
    print("\n  R by seed, all sources")
    for seed in range(len(next(iter(found.values()))["without"])):
        by = {m: torch.cat([own[m][seed] for own in found.values()]).mean() for m in next(iter(found.values()))}
        gap = by["without"] - by["full"]
        print(f"  {seed:2}  " + "  ".join(f"{m} {(by['without'] - nll) / gap:+.3f}" for m, nll in by.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("corpus", type=Path, nargs="?")
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--shape", default="128x2", help="width x layers")
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--ratio", type=int, default=8, help="tokens of a window to a memory token")
    parser.add_argument("--segments", type=int, default=4, help="windows of a row")
    parser.add_argument("--weight", type=float, default=0.1, help="of the reconstruction")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--held-out", type=int, default=400_000, help="held-out tokens to find documents in")
    parser.add_argument("--rounds", type=int, default=9, help="of steps in turns, for the speeds")
    parser.add_argument("--only", choices=("speeds", "train", "table"))
    arguments = parser.parse_args()
    if arguments.corpus is not None and not arguments.corpus.is_dir():
        parser.error(f"{arguments.corpus} is no folder; a run would go on without its sources")
    width, layers = map(int, arguments.shape.split("x"))
    sizes = Sizes(
        (width, layers),
        arguments.window,
        arguments.ratio,
        arguments.segments,
        arguments.weight,
        arguments.vocabulary,
        arguments.runs / "cache",
    )
    relative = relative_times(arguments.runs, arguments.corpus, sizes, arguments.rounds)
    print(f"{describe(local_device())}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    print(
        f"{arguments.shape}, windows of {sizes.window}, {sizes.tokens} memory tokens, rows of {sizes.segments}; "
        f"{arguments.tokens:,} tokens"
    )
    print("  seconds of a token: " + "  ".join(f"{name} {share:.3f}" for name, share in relative.items()))
    if arguments.only == "speeds":
        return
    share = round(1 / relative["memory"], 3)
    made = []
    for seed in map(int, arguments.seeds.split(",")):
        made += [Made(name, seed) for name in ("without", "memory", "memory+recon", "raw", "full")]
        made += [Made("memory", seed, share)] if share != 1.0 else []  # then `memory` is that run
    if arguments.only != "table":
        ranks = join()
        for run in made:
            folder, budget = arguments.runs / run.folder, int(run.share * arguments.tokens)
            if not finished(folder, budget):
                print(f"training {run.folder}: {budget:,} tokens", flush=True)
                own = preset(run.name, arguments.corpus, sizes, run.seed)
                train(own, token_budget=budget, checkpoint_dir=folder, ranks=ranks)
        leave()
    if arguments.only != "train":
        table(made, arguments, sizes)


if __name__ == "__main__":
    main()
