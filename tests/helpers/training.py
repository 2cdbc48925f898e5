"""Presets small enough to train within seconds on one core, and main.py as a process."""

import copy
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from engine.events import read
from tests.helpers.text import REPOSITORY

TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "seq_length": 32},
    "train": {
        "per_gpu_batch_size": 8,
        "accumulation_steps": 2,
        "eval_tokens": 2000,
        "eval_interval_tokens": 4096,
        "log_interval_seconds": 1e-9,
        "compile": False,
        "precision": "fp32",
    },
    "data": {"tokenizer": {"train_bpe": 512}},
}


def tiny_values(topics_folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """A preset of 512 tokens a step as JSON values; keyword arguments are merged into its sections."""
    values = copy.deepcopy(TINY)
    values["data"]["sources"] = [{"type": "files", "path": str(topics_folder), "glob": "*.txt", "name": "topics"}]
    for section, changes in sections.items():
        values[section] = {**values.get(section, {}), **changes}
    return values


def environment(**changes: str) -> dict[str, str]:
    values = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | changes
    return {name: value for name, value in values.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


def start_main(home: Path, *launcher: str, **changes: str) -> subprocess.Popen[str]:
    """main.py in `home`, started by python or by a launcher; its output is one stream of text."""
    command = [*(launcher or (sys.executable,)), str(REPOSITORY / "main.py")]
    return subprocess.Popen(
        command,
        cwd=home,
        env=environment(**changes),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_main(home: Path, answer: str = "", timeout: float = 180, **changes: str) -> tuple[int, str]:
    """Exit status and output of a main.py that is given `answer` on standard input."""
    process = start_main(home, **changes)
    output, _ = process.communicate(answer, timeout=timeout)
    return process.returncode, output


TOKENS_PER_STEP = 8 * 2 * 32  # tokens of one step of the tiny preset


def signal_after(folder: Path, steps: int) -> None:
    """Sends this process a SIGTERM once its metrics have come to `steps` more steps than there are now."""
    before = len([event for event in read(folder) if event["event"] == "step"])

    def wait() -> None:
        while len([event for event in read(folder) if event["event"] == "step"]) < before + steps:
            time.sleep(0.005)
        os.kill(os.getpid(), 15)

    threading.Thread(target=wait, daemon=True).start()


WORKER = """
import contextlib, json, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from engine import train
from engine.errors import Interrupted
from engine.config import parse_preset
from engine.device.ranks import join, leave
from tests.helpers.training import signal_after
ranks = join()
preset = parse_preset(json.loads(sys.argv[1]))
if len(sys.argv) > 4 and ranks.is_main:
    signal_after(Path(sys.argv[2]), int(sys.argv[4]))
with contextlib.suppress(Interrupted):
    result = train(preset, token_budget=int(sys.argv[3]), checkpoint_dir=sys.argv[2], ranks=ranks)
    if ranks.is_main:
        print(result)
leave()
"""

TORCHRUN = ("-m", "torch.distributed.run", "--nproc_per_node=2")


def train_with(processes: int, preset, folder: Path, budget: int, tmp_path: Path, stop_after: int = 0) -> list[dict]:
    """The folder's events; a SIGTERM ends the run when it has made `stop_after` steps, if that is any."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    launcher = TORCHRUN if processes == 2 else ()
    command = [sys.executable, *launcher, str(script), preset.model_dump_json(by_alias=True), str(folder), str(budget)]
    command += [str(stop_after)] if stop_after else []
    finished = subprocess.run(command, env=environment(), cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, (finished.stdout + finished.stderr)[-3000:]
    return read(folder)


def by_step(events: list[dict]) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in events if event["event"] == "step"}
