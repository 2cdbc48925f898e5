"""Which shape suits a run: held-out bits per byte of several shapes against the time of training, and at 100 M tokens.

    python -m benchmarks.shapes RUNS [CORPUS] [--shapes 128x2,256x3,256x6,384x6,512x8] [--of now+vocabulary-16k]
                                [--tokens 500000,1000000,2000000,4000000] [--text corpus] [--seeds 0]
                                [--only train|table] [--rounds 5] [--compile] [--gpt2 FOLDER]

Each shape (width x layers) is trained on each number of tokens, each run with the schedule of such a run; `--of` is a
variant of benchmarks.variants, for all of them. `256x6@2000000` trains a shape on that number of tokens at most, where
the machine is too slow for more. A law, bits per byte = E + A / parameters^a + B / tokens^b, is fitted to all runs
that are there (benchmarks/shapes_fit.py); it says what each shape would reach after 100 M tokens and after the time
that the first shape takes for them, with an interval from resampled residuals. That is far outside of what was trained,
and the interval does not cover a law of another form; how far a law of all but the longest runs is from these is
printed too. Runs are kept in RUNS and not made again.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.lookahead import finished
from benchmarks.shapes_fit import Law, Run, fit, resampled
from benchmarks.variants import OPTIONS, TEXTS, VARIANTS, Made, preset, sections_of, speeds, vocabulary
from engine import train
from engine.checkpoint.folder import CURRENT
from engine.config import Preset
from engine.device import machine
from engine.device.ranks import join, leave, local_device
from model.config.size import flops_per_token, parameter_count
from model.snapshot import file

WHOLE = 100_000_000  # tokens of a run
RESAMPLED = 200


@dataclass(frozen=True)
class Shape:
    width: int
    layers: int
    most_tokens: int

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """Raises ValueError for a text that is not WIDTHxLAYERS or WIDTHxLAYERS@TOKENS."""
        size, _, most = text.partition("@")
        width, layers = map(int, size.split("x"))
        return cls(width, layers, int(most or WHOLE))

    @property
    def name(self) -> str:
        return f"{self.layers} x {self.width}"

    def folder(self, of: str, tokens: int, seed: int) -> str:
        return f"{self.width}x{self.layers}-{of}-{tokens}-{seed}"


def figures(law: Law, laws: list[Law], parameters: float, tokens: float) -> str:
    """What the law says, and the middle 95% of what laws of resampled runs say."""
    of_laws = sorted(each.bits(parameters, tokens) for each in laws)
    low, high = of_laws[round(0.025 * (len(of_laws) - 1))], of_laws[round(0.975 * (len(of_laws) - 1))]
    return f"{law.bits(parameters, tokens):.3f} [{low:.3f}, {high:.3f}]"


def table(presets: dict[Shape, Preset], runs: list[Run], by_shape: dict[str, dict[int, float]], step: dict[str, float]):
    counts = sorted({tokens for of_shape in by_shape.values() for tokens in of_shape})
    heads = "".join(f"{tokens / 1e6:8.2f} M" for tokens in counts)
    print(f"bits per byte after so many tokens, means over seeds; a token's time is {next(iter(step))}'s times\n")
    print(f"  {'':10} {'parameters':>11} {'MFLOP':>7} {'time':>6} {heads}")
    sizes = {}
    for shape, made in presets.items():
        words = vocabulary(made)
        sizes[shape.name] = parameter_count(made.model, words)
        flops = flops_per_token(made.model, words) / 1e6
        row = "".join(f"{of[n]:10.4f}" if n in (of := by_shape.get(shape.name, {})) else f"{'-':>10}" for n in counts)
        print(f"  {shape.name:10} {sizes[shape.name] / 1e6:9.2f} M {flops:7.1f} {step[shape.name]:6.2f} {row}")
    if len(runs) < 6 or len(by_shape) < 2 or len(counts) < 2:
        print("\nNo law: it needs six runs or more, of several shapes and numbers of tokens.")
        return
    law, longest = fit(runs), [run for run in runs if run.tokens == counts[-1]]
    laws = resampled(runs, law, RESAMPLED)
    print(f"\n{law}; residuals of {law.error(runs):.4f}, {len(runs)} runs")
    if len(shorter := [run for run in runs if run not in longest]) >= 6 and len(counts) > 2:
        print(
            f"a law of the others is {fit(shorter).error(longest):.4f} from the runs of {counts[-1] / 1e6:g} M tokens"
        )
    print(f"  {'':10} {'after 100 M tokens':>24} {'after the time of ' + next(iter(step)) + chr(39) + 's 100 M':>40}")
    for name, parameters in sizes.items():
        same_time = WHOLE / step[name] * next(iter(step.values()))
        whole, equal = (figures(law, laws, parameters, tokens) for tokens in (WHOLE, same_time))
        print(f"  {name:10} {whole:>24} {equal:>28} ({same_time / 1e6:6.1f} M)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("corpus", type=Path, nargs="?")
    parser.add_argument("--shapes", default="128x2,256x3,256x6,384x6,512x8", help="width x layers [@ most tokens]")
    parser.add_argument("--of", default="now+vocabulary-16k", help="a variant of benchmarks.variants")
    parser.add_argument("--tokens", default="500000,1000000,2000000,4000000")
    parser.add_argument("--text", choices=TEXTS, default="corpus")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--only", choices=("train", "table"))
    parser.add_argument("--rounds", type=int, default=5, help="of steps in turns, for the speeds")
    parser.add_argument("--compile", action="store_true", help="runs, and the steps that are timed")
    parser.add_argument("--gpt2", help="a folder with GPT-2's tokenizer, where the hub cannot be reached")
    arguments = parser.parse_args()
    if unknown := [part for part in arguments.of.split("+") if part not in VARIANTS | OPTIONS]:
        parser.error(f"--of {unknown[0]} is no variant; python -m benchmarks.variants RUNS --list names all")
    if arguments.text == "corpus" and (arguments.corpus is None or not arguments.corpus.is_dir()):
        parser.error("--text corpus needs the folder CORPUS")
    if arguments.gpt2:
        OPTIONS["vocabulary-gpt2"]["data"]["tokenizer"] = arguments.gpt2
    sections_of(arguments.of)
    shapes = [Shape.parse(text) for text in arguments.shapes.split(",")]
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    counts = [int(tokens) for tokens in arguments.tokens.split(",")]
    presets = {
        shape: preset(
            Made(arguments.of, 1.0, 0, arguments.text), arguments.corpus, (shape.width, shape.layers), arguments.compile
        )
        for shape in shapes
    }
    wanted = [(shape, n, seed) for n in counts for shape in shapes for seed in seeds if n <= shape.most_tokens]
    if arguments.only != "table":
        ranks = join()
        for shape, tokens, seed in wanted:
            folder = arguments.runs / shape.folder(arguments.of, tokens, seed)
            if not finished(folder, tokens):
                print(f"training {folder.name}", flush=True)
                made = presets[shape]
                seeded = made.model_copy(update={"train": made.train.model_copy(update={"seed": seed})})
                train(seeded, token_budget=tokens, checkpoint_dir=folder, ranks=ranks)
        leave()
    if arguments.only == "train":
        return

    losses: dict[tuple[Shape, int], list[float]] = {}
    for shape, tokens, seed in wanted:
        folder = arguments.runs / shape.folder(arguments.of, tokens, seed)
        if not finished(folder, tokens):
            print(f"not finished: {folder.name}")
            continue
        evaluation = file.read(folder / CURRENT, verify=False).progress["evaluation"]
        losses.setdefault((shape, tokens), []).append(evaluation["bits_per_byte"])
    runs, by_shape = [], {}
    for (shape, tokens), of_seeds in losses.items():
        parameters = parameter_count(presets[shape].model, vocabulary(presets[shape]))
        runs += [Run(parameters, tokens, bits) for bits in of_seeds]
        by_shape.setdefault(shape.name, {})[tokens] = sum(of_seeds) / len(of_seeds)
    print(f"{machine.describe(local_device())}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    compiled = "compiled" if arguments.compile else "uncompiled"
    print(f"{arguments.of}, {arguments.text}, {compiled}, seeds {arguments.seeds}")
    step = speeds({shape.name: made for shape, made in presets.items()}, arguments.rounds, arguments.compile)
    table(presets, runs, by_shape, step)


if __name__ == "__main__":
    main()
