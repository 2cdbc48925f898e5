"""All rows that need a GPU, the most valuable first, within a number of minutes; each result in a file of its own.

    python -m benchmarks.gpu RUNS [--corpus CORPUS] [--gpt2 FOLDER] [--minutes 14] [--dry-run]

Each entry of JOBS is the command of another benchmark. One that would not end in time is stopped with what it has
printed so far, and those after it are left out and named. On a machine without a GPU each runs as small as it goes, to
show that it would run there (--dry-run: and no peer is waited for longer than a minute).
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

REPOSITORY = Path(__file__).parent.parent


@dataclass(frozen=True)
class Job:
    """One benchmark's command on a GPU, and `small`, what makes it short where there is none. `minutes` is what it
    takes on an H200, as estimated; half as many again are given to it."""

    name: str
    command: tuple[str, ...]
    small: tuple[str, ...]
    minutes: float


def jobs(runs: Path, corpus: Path | None, gpt2: Path | None) -> list[Job]:
    """The most valuable first: decoding, whole runs of 100 M tokens, the steps' speed, drafts, memory and MFU."""
    texts = [] if corpus is None else [str(corpus)]
    words = [] if gpt2 is None else ["--gpt2", str(gpt2)]
    tiny = ("--tokens", "32768", "--rounds", "1")
    whole = str(runs / "whole")
    best = ("variants", whole, *texts, "--tokens", "100000000", "--of", "adamw,all", "--seeds", "0", "--at-once", "2")
    core = ("lookahead", str(runs / "core"), *texts, "--methods", "on", "--seeds", "0", "--only", "train")
    draft = ("--changes", '{"enable_draft": true}')
    written = ("decoding", str(runs / "core" / "on-0" / "lm_current.pth"), "--rows", "verify,speed", "--prompts", "20")
    speed = ("train_speed", "--races", "reference,alone", "--rounds", "3")
    one_step = ("--races", "offline", "--rounds", "1", "--steps", "1", "--trainers", "engine,plain")
    return [
        Job("generate", ("generate", "--rows", "gpu", "--rounds", "3"), ("--rounds", "1"), 2),
        Job("whole-runs", (*best, "--compile", *words), (*tiny, "--at-once", "1"), 4),
        Job("train-speed", speed, one_step, 4),
        Job("draft-model", (*core, *draft), ("--tokens", "32768"), 3),
        Job("decoding", written, ("--prompts", "2"), 2),
        Job("cross-entropy", ("cross_entropy", "--rounds", "5"), ("--rounds", "1"), 1),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="where models are trained, and RUNS/NAME.txt is written for each job")
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--gpt2", type=Path)
    parser.add_argument("--minutes", type=float, default=14.0)
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    small = arguments.dry_run or not torch.cuda.is_available()
    end = time.monotonic() + 60 * arguments.minutes
    for job in jobs(arguments.runs.resolve(), arguments.corpus, arguments.gpt2):
        left = end - time.monotonic()
        if left < 20:
            print(f"{job.name}: left out, no time")
            continue
        begin = time.monotonic()
        command = [
            sys.executable,
            "-m",
            f"benchmarks.{job.command[0]}",
            *job.command[1:],
            *(job.small if small else ()),
        ]
        status = run(
            command, arguments.runs / f"{job.name}.txt", min(left, 60.0 if arguments.dry_run else 90 * job.minutes)
        )
        print(f"{job.name}: {status}, {time.monotonic() - begin:.0f} s", flush=True)


def run(command: list[str], output: Path, seconds: float) -> str:
    """Run the command with its output in a file; how it ended."""
    with output.open("w", encoding="utf-8") as file:
        file.write(f"$ python {' '.join(command[1:])}\n")
        file.flush()
        try:
            ended = subprocess.run(command, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT, timeout=seconds)
        except subprocess.TimeoutExpired:
            return "stopped, no time"
    return "done" if ended.returncode == 0 else f"failed with status {ended.returncode}"


if __name__ == "__main__":
    main()
