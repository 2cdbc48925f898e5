"""`02_offline_python` through the real main.py, stopped on the way by SIGTERM and by SIGKILL, and resumed.

    python -m benchmarks.offline_run FOLDER [--tokens 3000000]

Runs main.py with FOLDER as the working directory (its configs/ are copied there), reads nothing but what a user could
read, and prints the loss curve, the held-out bits per byte beside gzip's and xz's on the same bytes, and a sample.
"""

import argparse
import gzip
import itertools
import json
import lzma
import math
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from engine.config import load_preset
from engine.device import machine
from engine.events import read
from model import load
from sources.held_out import collect_validation_set
from sources.registry import open_sources
from sources.rows.tokenizer import TextTokenizer

REPOSITORY = Path(__file__).parent.parent


def start(folder: Path, log: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "main.py")],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=log.open("ab"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    process.stdin.write(b"02\n")
    process.stdin.close()
    return process


def wait_for(process: subprocess.Popen, checkpoints: Path, reached) -> None:
    """Until `reached(events)` is true of the run's metrics."""
    while not reached(read(checkpoints)):
        if process.poll() is not None:
            raise SystemExit(f"main.py left with status {process.returncode}; see its output.")
        time.sleep(1.0)


def tokens(events: list[dict]) -> int:
    return max((event["tokens"] for event in events if event["event"] == "step"), default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=3_000_000)
    arguments = parser.parse_args()
    folder, checkpoints = arguments.folder, arguments.folder / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(REPOSITORY / "configs", folder / "configs", dirs_exist_ok=True)
    log = folder / "output.txt"

    first = start(folder, log)
    wait_for(first, checkpoints, lambda events: tokens(events) >= arguments.tokens // 3)
    first.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    status = first.wait()
    seconds = time.monotonic() - asked
    print(f"SIGTERM at {tokens(read(checkpoints)):,} tokens: status {status} after {seconds:.1f} s")

    second = start(folder, log)
    before = len(read(checkpoints))
    wait_for(
        second,
        checkpoints,
        lambda events: tokens(events) >= arguments.tokens // 2 and any(e["event"] == "save" for e in events[before:]),
    )
    time.sleep(20)
    second.send_signal(signal.SIGKILL)
    second.wait()
    killed_at = tokens(read(checkpoints))
    saved_at = torch.load(checkpoints / "lm_current.pth", weights_only=True, mmap=True)["progress"]["tokens_in_run"]
    print(f"SIGKILL at {killed_at:,} tokens; the newest snapshot is at {saved_at:,}")

    third = start(folder, log)
    before = len(read(checkpoints))
    wait_for(
        third,
        checkpoints,
        lambda events: (
            tokens(events[before:]) >= arguments.tokens
            and any(e["event"] == "evaluation" for e in events[before:] if e["event"] == "evaluation")
        ),
    )
    third.send_signal(signal.SIGTERM)
    print(f"SIGTERM: status {third.wait()}")
    report(checkpoints)


def report(checkpoints: Path) -> None:
    """The curve, the held-out comparison and a sample, from what the run left behind."""
    events = read(checkpoints)
    run = next(event for event in events if event["event"] == "run")
    print(f"\n{run['machine']}, {run['derived']['precision']}, compiled: {run['derived']['compiled']}")
    print("\nloss curve: means over 100,000 tokens; steps that were repeated after the SIGKILL count twice")
    print(f"{'tokens':>12}  {'loss':>7}  {'lr':>8}  {'tokens/s':>8}  {'data wait':>9}")
    steps = [event for event in events if event["event"] == "step"]
    for bucket, group in itertools.groupby(steps, key=lambda event: event["tokens"] // 100_000):
        of_bucket = list(group)
        weights = [event["steps"] for event in of_bucket]

        def mean(key: str, of_bucket: list[dict] = of_bucket, weights: list[int] = weights) -> float:
            return sum(e[key] * w for e, w in zip(of_bucket, weights, strict=True)) / sum(weights)

        rate = statistics.median(event["tokens_per_second"] for event in of_bucket)
        print(
            f"{(bucket + 1) * 100_000:12,}  {mean('loss'):7.4f}  {of_bucket[-1]['lr']:8.2e}  {rate:8,.0f}"
            f"  {mean('data_wait'):9.2%}"
        )
    for event in events:
        if event["event"] == "evaluation":
            print(
                f"held out at step {event['step']:,}: CE {event['ce']:.4f}, bits per byte {event['bits_per_byte']:.4f}"
            )
    for event in events:
        if event["event"] in ("resume", "save"):
            print(f"{event['event']}: {event.get('message') or event['path']} (step {event['step']:,})")

    preset = load_preset(REPOSITORY / "configs" / "02_offline_python.json")
    lm = load(checkpoints / "lm_current.pth")
    saved = torch.load(checkpoints / "lm_current.pth", weights_only=True, mmap=True)
    tokenizer = TextTokenizer.from_json(saved["tokenizer"], saved["config"]["eos_token_id"])
    held_out = collect_validation_set(
        open_sources(preset.data).sources,
        preset.data,
        tokenizer,
        seq_length=preset.model.seq_length,
        eval_tokens=preset.train.eval_tokens,
    )
    texts = [text for source in held_out.texts.values() for text in source]
    data = "\n".join(texts).encode()
    nll = 0.0
    with torch.no_grad():
        for rows in torch.arange(len(held_out.input_ids)).split(16):
            nll += lm.model(held_out.input_ids[rows], held_out.labels[rows]).loss_sum.item()
    text_bytes = sum(held_out.bytes_per_source.values())
    print(f"\nheld out: {len(texts)} documents, {text_bytes:,} bytes, never trained on (bits per byte)")
    bits = nll / math.log(2) / text_bytes
    print(f"  the model at {saved['progress']['tokens_total']:,} tokens  {bits:.3f}")
    print(f"  gzip -9, all in one          {8 * len(gzip.compress(data, 9)) / len(data):.3f}")
    print(
        f"  xz -9e, all in one           {8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) / len(data):.3f}"
    )
    print(
        f"  gzip -9, document by document {8 * sum(len(gzip.compress(t.encode(), 9)) for t in texts) / len(data):.3f}"
    )
    print("\nsample (temperature 0.8, top_p 0.9, seed 0)")
    prompt = "def read_lines(path):\n"
    print(prompt + lm.generate(prompt, max_new_tokens=120, temperature=0.8, top_p=0.9, no_repeat_ngram=6, seed=0))
    print(json.dumps(saved["progress"]))
    print(machine.describe(torch.device("cpu")))


if __name__ == "__main__":
    main()
