"""From a signal to a verified save and nobody left; and one lineage on 1, 2, 1 and 3 processes.

    python -m benchmarks.stops [--rounds 3] [--rows signals,worlds]

Starts main.py by itself and under torchrun, on Python's documentation, and signals it where that is most awkward. The
seconds are those until the last process has ended; the newest snapshot is then read and verified.
"""

import argparse
import json
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch

from engine.checkpoint.folder import CheckpointFolder
from engine.config import parse_preset
from engine.device import machine
from tests.helpers.jobs import STEP_LINE, Job
from tests.helpers.processes import TORCHRUN
from tests.helpers.text import write_topics
from tests.helpers.training import start_main, tiny_values
from tests.helpers.worlds import compare

AIM = 20.0  # seconds
WIDE = {"hidden_size": 256, "num_layers": 3, "num_heads": 4, "seq_length": 256}  # the reference preset's shape
RUNNING = {"eval_interval_tokens": 10**9}


def to_process(job: Job) -> None:
    job.process.send_signal(signal.SIGTERM)


def to_rank(job: Job) -> None:
    job.rank(1).send_signal(signal.SIGTERM)


def to_group(job: Job) -> None:
    for process in [psutil.Process(job.process.pid), *psutil.Process(job.process.pid).children(recursive=True)]:
        process.send_signal(signal.SIGINT)


# What is done when: launcher, preset, the line to wait for, seconds after it, the signal.
MOMENTS: dict[str, tuple[tuple[str, ...], dict[str, dict[str, Any]], str, float, Callable[[Job], None]]] = {
    "in short steps": ((), {"train": RUNNING}, STEP_LINE, 1.0, to_process),
    "in a step of 131,072 tokens, 3 x 256": (
        (),
        {"model": WIDE, "train": {**RUNNING, "per_gpu_batch_size": 128, "accumulation_steps": 4}},
        STEP_LINE,
        3.0,
        to_process,
    ),
    "in an evaluation": (
        (),
        {"model": WIDE, "train": {"eval_tokens": 20_000, "eval_interval_tokens": 4096, "per_gpu_batch_size": 4}},
        STEP_LINE,
        0.5,
        to_process,
    ),
    "while a snapshot is written": (
        (),
        {"train": {**RUNNING, "save_interval_minutes": 1e-9}},
        STEP_LINE,
        1.0,
        to_process,
    ),
    "while the model is compiled": (
        (),
        {"train": {**RUNNING, "compile": True}},
        "Compiling the model",
        5.0,
        to_process,
    ),
    "2 ranks, to one of them": ((sys.executable, *TORCHRUN), {"train": RUNNING}, STEP_LINE, 1.0, to_rank),
    "2 ranks, to torchrun": ((sys.executable, *TORCHRUN), {"train": RUNNING}, STEP_LINE, 1.0, to_process),
    "2 ranks, SIGINT to the whole group": ((sys.executable, *TORCHRUN), {"train": RUNNING}, STEP_LINE, 1.0, to_group),
    "2 ranks, to one in a step of 300 passes": (
        (sys.executable, *TORCHRUN),
        {"train": {**RUNNING, "accumulation_steps": 300}},
        STEP_LINE,
        1.0,
        to_rank,
    ),
}


def stop(topics: Path, name: str) -> tuple[float, int]:
    """Seconds from the signal to the end of the last process, and the step of the snapshot that is then there."""
    launcher, sections, line, seconds, send = MOMENTS[name]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "configs").mkdir()
        (home / "configs" / "00_tiny.json").write_text(json.dumps(tiny_values(topics, **sections)))
        job = Job(home, start_main(home, *(launcher or (sys.executable,))))
        job.process.stdin.close()
        try:
            job.until(line)
            time.sleep(seconds)
            since = time.monotonic()
            send(job)
            job.rest()
            took = job.ends_within(120.0, since)
        finally:
            job.kill()
        assert "engine/" not in job.output, f"a traceback of ours (launchers print their own): {job.output[-2000:]}"
        restored = CheckpointFolder(home / "checkpoints").newest()
        assert restored is not None and restored.optimizer is not None and not restored.notes
        told = re.search(r"SIG\w+ at step ([\d,]+)", job.output)
        step = restored.snapshot.progress["step"]
        assert step == (int(told[1].replace(",", "")) if told else 0), "not what was trained last"
        return took, step


def signals(topics: Path, rounds: int) -> None:
    print(f"\n{'SIGTERM, if nothing else is said':44}{'seconds, median':>17}{'worst':>8}{'aim':>6}   saved step")
    for name in MOMENTS:
        stops = [stop(topics, name) for _ in range(rounds)]
        took = [seconds for seconds, _ in stops]
        steps = ", ".join(f"{step:,}" for _, step in stops)
        print(f"{name:44}{statistics.median(took):17.1f}{max(took):8.1f}{AIM:6.0f}   {steps}", flush=True)


def worlds(topics: Path) -> None:
    def tiny(**sections: dict[str, Any]) -> Any:
        return parse_preset(tiny_values(topics, **sections))

    with tempfile.TemporaryDirectory() as folder:
        legs = [(1, 1), (2, 2), (1, 0), (3, 1)]
        whole, parts = compare(tiny, Path(folder), legs, steps=10)
    apart = max(abs(parts.losses[step] - loss) for step, loss in whole.losses.items())
    told = " -> ".join(f"{processes} (ZeRO-{stage})" for processes, stage in legs)
    print(f"\nprocesses {told}, 10 steps each, against one process without a stop")
    print(f"rows of a step, and their order: {'equal' if parts.rows == whole.rows else 'DIFFERENT'}")
    print(f"largest difference of a step's loss: {apart:.1e} nats (aim 1e-3)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", default="signals,worlds")
    arguments = parser.parse_args()
    print(f"{machine.describe(torch.device('cpu'))}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    with tempfile.TemporaryDirectory() as folder:
        topics = write_topics(Path(folder))
        rows = {"signals": partial(signals, topics, arguments.rounds), "worlds": partial(worlds, topics)}
        for name in arguments.rows.split(","):
            rows[name]()


if __name__ == "__main__":
    main()
