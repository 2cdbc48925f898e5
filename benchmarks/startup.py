"""How long a start takes: from Enter on the command line to the first screen, and from the choice to the first step.

    python -m benchmarks.startup [--rounds 5] [--preset 02_offline_python] [--again]

Each round is a new process at a pseudo-terminal of 120 x 40, in a new folder with the presets of configs/; the first
screen is there when the line of keys is drawn. Then the preset is chosen by its number, and the time runs until
metrics.jsonl has the first step. With --again each round is followed by a start that resumes it. The first round of a
machine measures its speed beside the menu, so it is left out of the median.
"""

import argparse
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pexpect

from engine.config import CONFIGS
from engine.events import read

ROOT = Path(__file__).resolve().parents[1]
LAST_LINE = "q quit"
STEP_SECONDS = 900


def started(folder: Path) -> tuple[pexpect.spawn, float]:
    """main.py in `folder`, and the seconds until its first screen."""
    begin = time.perf_counter()
    process = pexpect.spawn(
        sys.executable, [str(ROOT / "main.py")], cwd=str(folder), dimensions=(40, 120), timeout=120, encoding="utf-8"
    )
    process.expect_exact(LAST_LINE)
    return process, time.perf_counter() - begin


def seconds_to_a_step(process: pexpect.spawn, keys: str, folder: Path) -> float:
    """Choose by `keys`; the seconds until there is one more step event. The run is then stopped."""
    steps = num_steps(folder)
    begin = time.perf_counter()
    process.send(keys)
    while num_steps(folder) == steps:
        drain(process)
        if time.perf_counter() - begin > STEP_SECONDS or not process.isalive():
            raise SystemExit(f"There was no step: {process.before}")
    seconds = time.perf_counter() - begin
    process.kill(signal.SIGINT)
    while process.isalive():
        drain(process)
    return seconds


def drain(process: pexpect.spawn) -> None:
    """Take what is printed, so that the process never waits for its terminal."""
    try:
        process.read_nonblocking(65536, timeout=0.05)
    except pexpect.TIMEOUT:
        pass
    except pexpect.EOF:
        process.wait()


def num_steps(folder: Path) -> int:
    return sum(event["event"] == "step" for event in read(folder / "checkpoints"))


def median(seconds: list[float]) -> str:
    counted = seconds[1:] or seconds
    return f"{statistics.median(counted):8.2f} {min(counted):8.2f} {max(counted):8.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--preset", default="02_offline_python")
    parser.add_argument("--again", action="store_true")
    chosen = parser.parse_args()
    rows: dict[str, list[float]] = {}
    for _ in range(chosen.rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "configs").symlink_to(ROOT / CONFIGS)
            process, seconds = started(folder)
            rows.setdefault("first screen", []).append(seconds)
            rows.setdefault("first step", []).append(seconds_to_a_step(process, f"{chosen.preset}\r", folder))
            if chosen.again:
                process, seconds = started(folder)
                rows.setdefault("first screen, with a run", []).append(seconds)
                rows.setdefault("first step, resumed", []).append(seconds_to_a_step(process, "\r", folder))
    print(f"{'seconds, from Enter':28}{'median':>8} {'least':>8} {'most':>8}")
    for label, seconds in rows.items():
        print(f"{label:28}{median(seconds)}")


if __name__ == "__main__":
    main()
