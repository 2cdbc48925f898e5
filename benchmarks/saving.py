"""What keeping a run safe costs at the reference preset's size, and DeepSpeed's own checkpoints beside it.

    python -m benchmarks.saving [--rounds 5] [--vocabulary 50257]

A save holds training up while a copy is taken; the rest is written beside it. Times include fsync, for DeepSpeed's
files too, which it does not sync itself. Its universal checkpoint, the form of its that other world sizes can read, is
made from its own by a conversion.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch

from benchmarks.overhead import real_bytes
from engine import events
from engine.checkpoint.background import BackgroundSaver, Checkpoint
from engine.checkpoint.folder import CheckpointFolder
from engine.config import TrainConfig
from engine.device import deepspeed_engine, machine
from engine.device.optimizer_state import optimizer_state
from engine.device.ranks import Ranks, join, leave
from engine.optim.optimizers import adamw
from engine.screen.console import Console
from model import ModelConfig, TransformerLM
from model.snapshot.file import Snapshot
from sources.loading.loader import BatchShape


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=50_257)
    arguments = parser.parse_args()
    ranks = join()
    config, train = ModelConfig(), TrainConfig(precision="fp32")
    model = TransformerLM(config, arguments.vocabulary)
    engine = deepspeed_engine.initialize(model, train, BatchShape(2, 1, config.seq_length), ranks, bf16=False)
    ids = real_bytes(2 * config.seq_length + 1)
    loss_sum, _ = engine(ids[:-1].view(2, -1), ids[1:].view(2, -1))
    engine.backward(loss_sum / (2 * config.seq_length))
    gradients = deepspeed_engine.Gradients.accumulated(engine)
    squares = gradients.squared_norms(ranks.device).cpu()
    deepspeed_engine.step(engine, gradients, squares, train.gradient_clipping, ranks)  # now there are moments

    def take() -> Checkpoint:
        snapshot = Snapshot(
            model=deepspeed_engine.weights(engine, keep=True),
            config={**config.model_dump(), "vocab_size": arguments.vocabulary, "eos_token_id": 0},
            tokenizer=None,
            progress={"run": 1, "step": 1, "tokens_in_run": 1, "tokens_total": 1},
        )
        return snapshot, optimizer_state(engine, keep=True), {"loader": None}

    where = f"{machine.describe(ranks.device)}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
    print(f"{where}\n3 x 256, vocabulary {arguments.vocabulary:,}: {model.num_parameters() / 1e6:.1f} M parameters")
    with tempfile.TemporaryDirectory() as scratch:
        ours(take, Path(scratch, "ours"), ranks, 60 * train.save_interval_minutes, arguments.rounds)
        print("\nA generation and DeepSpeed's own checkpoint, one process (bytes, seconds to save, seconds to load)")
        rows = {
            "ours: snapshot and state, verified": generation(take, Path(scratch, "one")),
            **deepspeeds(engine, train, ranks, arguments.vocabulary, Path(scratch, "deepspeed")),
        }
        for name, (size, saving, loading) in rows.items():
            print(f"  {name:<44} {size / 2**20:6.0f} MiB  {saving:6.2f} s  {loading:6.2f} s")
    leave()


def ours(take: Callable[[], Checkpoint], folder: Path, ranks: Ranks, interval: float, rounds: int) -> None:
    """Saves as a run does: what it holds training up, and what it costs in all."""
    folder.mkdir()
    log = events.EventLog(folder, Console(enabled=False))
    processor = []
    for _ in range(rounds):
        begin = time.process_time()
        saver = BackgroundSaver(take, interval / 60, CheckpointFolder(folder), ranks, log, saved=None)
        saver.save()
        saver.close()
        saver.poll()
        processor.append(time.process_time() - begin)
    log.close()
    saves = [event for event in events.read(folder) if event["event"] == "save"]
    held_up = statistics.median(event["held_up_seconds"] for event in saves)
    beside = statistics.median(event["seconds"] for event in saves)
    total = statistics.median(processor)
    print(f"\nA save every {interval / 60:.0f} minutes, median of {rounds} (aim: under 2% of training time)")
    print(f"  training is held up                          {held_up:6.2f} s  {held_up / interval:7.3%}")
    print(f"  writing, beside training                     {beside:6.2f} s")
    print(f"  processor time in all                        {total:6.2f} s  {total / interval:7.3%}")


def generation(take: Callable[[], Checkpoint], folder: Path) -> tuple[int, float, float]:
    """Bytes, seconds to save and to load of one generation."""
    checkpoints = CheckpointFolder(folder)
    saving = seconds(lambda: checkpoints.save(*take()))
    size = sum(path.stat().st_size for path in [checkpoints.current, *(folder / "state").glob("*.pt")])
    loading = seconds(lambda: CheckpointFolder(folder).newest())
    return size, saving, loading


def deepspeeds(
    engine: deepspeed.DeepSpeedEngine, train: TrainConfig, ranks: Ranks, vocabulary: int, folder: Path
) -> dict[str, tuple[int, float, float]]:
    """The same of DeepSpeed's checkpoint, and of the universal one that is made of it."""

    def save() -> None:
        engine.save_checkpoint(str(folder), tag="step")
        sync(folder)

    def convert() -> None:
        command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
        command += ["--input_folder", str(folder / "step"), "--output_folder", str(folder / "universal")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        sync(folder)

    def load(tag: str) -> float:
        model = TransformerLM(ModelConfig(), vocabulary)
        config = deepspeed_engine.engine_config(train, ranks.world_size, bf16=False)
        other, *_ = deepspeed.initialize(
            model=model,
            optimizer=adamw(model, train.learning_rate, train.weight_decay),
            config={**config, "checkpoint": {"load_universal": tag == "universal"}},
            dist_init_required=False,
        )
        taken = seconds(lambda: other.load_checkpoint(str(folder), tag=tag))
        other.destroy()
        return taken

    saving = seconds(save)
    converting = seconds(convert)
    return {
        "DeepSpeed's, this world size only": (size_of(folder / "step"), saving, load("step")),
        "DeepSpeed's, converted to universal": (size_of(folder / "universal"), saving + converting, load("universal")),
    }


def seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sync(folder: Path) -> None:
    """fsync of every file and folder."""
    for path in [folder, *folder.rglob("*")]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


if __name__ == "__main__":
    main()
