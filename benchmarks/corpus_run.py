"""Local datasets in hub layout and PDFs, mixed by weight, with GPT-2's tokenizer, on one and on two processes.

    python -m benchmarks.corpus_run CORPUS TOKENIZER [--tokens 200000]

CORPUS holds folders NAME/data/*.parquet and pdf/*.pdf; TOKENIZER is a folder with GPT-2's tokenizer. The same preset is
trained twice, by `python` and by torchrun with two processes that share the batch, and put side by side: the same rows
are in the same steps, so the same tokens are counted and losses differ by the order of sums only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from engine import events, train
from engine.config import parse_preset
from engine.device.ranks import join, leave

WEIGHTS = {"wikipedia": 2.0, "c4": 2.0, "gsm8k": 1.0, "peps": 2.0, "speeches": 1.0, "news": 1.0, "pdf": 0.5}
ROWS = 16  # a step, over all processes


def preset_values(corpus: Path, tokenizer: Path, processes: int) -> dict:
    datasets = [
        {"type": "hf", "name": name, "dataset": str(corpus / name)} for name in WEIGHTS if name not in ("gsm8k", "pdf")
    ]
    questions = {"fields": ["question", "answer"], "format": "Q: {question}\nA: {answer}"}
    return {
        "name": "corpus",
        "model": {"hidden_size": 128, "num_layers": 2, "num_heads": 2, "seq_length": 256},
        "train": {
            "per_gpu_batch_size": ROWS // processes,
            "eval_tokens": 20_000,
            "log_interval_seconds": 1e-9,
            "compile": False,
        },
        "data": {
            "sources": [
                *datasets,
                {"type": "hf", "name": "gsm8k", "dataset": str(corpus / "gsm8k"), **questions},
                {"type": "pdf", "name": "pdf", "path": str(corpus / "pdf")},
            ],
            "tokenizer": str(tokenizer),
            "mix_strategy": "weighted",
            "source_weights": WEIGHTS,
        },
    }


def worker(arguments: argparse.Namespace) -> None:
    ranks = join()
    preset = parse_preset(preset_values(arguments.corpus, arguments.tokenizer, ranks.world_size))
    train(preset, token_budget=arguments.tokens, checkpoint_dir=arguments.worker, ranks=ranks)
    leave()


def run(processes: int, arguments: argparse.Namespace, folder: Path) -> list[dict]:
    launcher = [] if processes == 1 else ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    command = [sys.executable, *launcher, "-m", "benchmarks.corpus_run", str(arguments.corpus)]
    command += [str(arguments.tokenizer), "--tokens", str(arguments.tokens), "--worker", str(folder)]
    with (folder / "output.txt").open("w") as output:
        subprocess.run(command, check=True, stdout=output, stderr=subprocess.STDOUT)
    return events.read(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments)
        return
    events = {}
    for processes in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            events[processes] = run(processes, arguments, Path(folder))
            if processes == 1:
                print((Path(folder) / "output.txt").read_text().replace(str(arguments.corpus), "CORPUS"))
    report(events)


def report(events: dict[int, list[dict]]) -> None:
    steps = {n: {e["step"]: e for e in found if e["event"] == "step"} for n, found in events.items()}
    one, two = steps[1], steps[2]
    print(f"machine: {events[1][0]['machine']}; {json.dumps(events[1][0]['derived'])}")
    print(
        f"\n{'step':>5}  {'tokens, 1 process':>17}  {'2 processes':>11}  {'loss, 1 process':>15}  {'2 processes':>11}"
    )
    for step in sorted(one.keys() & two.keys()):
        if step % 5 == 1 or step == max(one):
            print(
                f"{step:5}  {one[step]['tokens']:17,}  {two[step]['tokens']:11,}  {one[step]['loss']:15.5f}"
                f"  {two[step]['loss']:11.5f}"
            )
    differences = [abs(one[step]["loss"] - two[step]["loss"]) for step in one.keys() & two.keys()]
    print(f"largest difference of a step's loss: {max(differences):.2e} nats over {len(differences)} steps")
    same = all(one[step]["tokens"] == two[step]["tokens"] for step in one.keys() & two.keys())
    print(f"same tokens at every step: {same}")
    for number in (1, 2):
        last = [event for event in events[number] if event["event"] == "evaluation"][-1]
        sources = "  ".join(f"{name} {value['ce']:.4f}" for name, value in last["sources"].items())
        print(f"{number} process{'es' if number > 1 else '  '}: validation loss {last['ce']:.4f}  ({sources})")


if __name__ == "__main__":
    main()
