"""Presets small enough to train within seconds on one core, and main.py as a process."""

import copy
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.config import Preset
from engine.events import read
from tests.helpers.processes import Process, environment, run_ranks, start
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


def start_main(home: Path, *launcher: str, **changes: str) -> subprocess.Popen[str] | Process:
    """main.py in `home`; its output is one stream of text.

    With a launcher, or changes to the environment that are not the hub's, it is started as by a shell; else forked
    from a process that has imported all that it needs.
    """
    script = REPOSITORY / "main.py"
    if not launcher and all(name.startswith("HF_") for name in changes):
        return start(script, cwd=home, variables=changes)
    return subprocess.Popen(
        [*(launcher or (sys.executable,)), str(script)],
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
    return process.wait(), output


TOKENS_PER_STEP = 8 * 2 * 32  # tokens of one step of the tiny preset


def signal_after(folder: Path, steps: int) -> None:
    """Sends this process a SIGTERM once its metrics have come to `steps` more steps than there are now."""
    after_steps(folder, steps, lambda: os.kill(os.getpid(), 15))


def after_steps(folder: Path, steps: int, work: Callable[[], object]) -> None:
    """Does `work` in a thread once the metrics have come to `steps` more steps than there are now."""
    before = num_steps(folder)

    def wait() -> None:
        while num_steps(folder) < before + steps:
            time.sleep(0.005)
        work()

    threading.Thread(target=wait, daemon=True).start()


def num_steps(folder: Path) -> int:
    """The step events in the metrics."""
    return len([event for event in read(folder) if event["event"] == "step"])


def obstruct(folder: Path) -> Callable[[], None]:
    """Puts a file into the place of the states, which no save can replace; returns what undoes that."""
    state, aside = folder / "state", folder / "aside"
    state.rename(aside)
    state.write_text("in the way")

    def clear() -> None:
        state.unlink()
        aside.rename(state)

    return clear


def train_with(processes: int, preset: Preset, folder: Path, budget: int, stop_after: int = 0) -> list[dict]:
    """The folder's events; a SIGTERM ends the run when it has made `stop_after` steps, if that is any."""
    arguments = [preset.model_dump_json(by_alias=True), str(folder), str(budget), str(stop_after)]
    run_ranks(REPOSITORY / "tests/helpers/workers/training.py", *arguments, processes=processes)
    return read(folder)


def by_step(events: list[dict]) -> dict[int, float]:
    return {event["step"]: event["loss"] for event in events if event["event"] == "step"}
