"""Starts of main.py as jobs of one process or several."""

import contextlib
import json
import re
import subprocess
import time
from pathlib import Path

import psutil

from engine.checkpoint.folder import CheckpointFolder
from engine.events import read
from tests.helpers.processes import Process

STAMP = r"^[\d-]{10} [\d:]{8}  "  # of a line that goes to no terminal
STEP_LINE = STAMP + r"step [\d,]+ "


class Job:
    """A start of main.py, by itself or by a launcher; whatever it starts works in the same folder."""

    def __init__(self, home: Path, process: subprocess.Popen[str] | Process):
        assert process.stdin is not None and process.stdout is not None
        self.home, self.process, self.stdin, self.stdout = home, process, process.stdin, process.stdout
        self.output = ""

    def answer(self, text: str = "\n") -> None:
        """All that the job ever hears from its standard input."""
        self.stdin.write(text)
        self.stdin.close()

    def until(self, pattern: str, times: int = 1) -> None:
        """Reads the output to the line that matches for so many times."""
        for line in self.stdout:
            self.output += line
            times -= bool(re.search(pattern, line))
            if not times:
                return
        raise AssertionError(f"{pattern!r} never came:\n{self.output[-3000:]}")

    def rest(self) -> str:
        """The output from here on, once everybody who could write has ended."""
        rest = self.stdout.read()
        self.output += rest
        return rest

    def signal(self, number: int) -> str:
        """Sends a signal to the process that was started; returns what the job says from then on."""
        self.process.send_signal(number)
        return self.rest()

    def everybody(self) -> list[psutil.Process]:
        """All processes of this job that run."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                inside = Path(process.cwd()).is_relative_to(self.home)
                if inside and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def rank(self, rank: int) -> psutil.Process:
        for process in self.everybody():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("RANK") == str(rank) and any("main.py" in word for word in process.cmdline()):
                    return process
        raise AssertionError(f"no rank {rank}")

    def kill(self) -> None:
        for process in self.everybody():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def ends_within(self, seconds: float, since: float) -> float:
        """Waits until nobody is left; returns the seconds it took."""
        while self.everybody():
            assert time.monotonic() - since < seconds, [process.cmdline() for process in self.everybody()]
            time.sleep(0.05)
        self.process.wait(5)
        return time.monotonic() - since


def configure(home: Path, **sections: dict) -> None:
    path = home / "configs" / "00_tiny.json"
    values = json.loads(path.read_text())
    for section, changes in sections.items():
        values[section] = {**values[section], **changes}
    path.write_text(json.dumps(values))


def saved_steps(home: Path) -> int:
    """The step of the newest snapshot, which is whole."""
    restored = CheckpointFolder(home / "checkpoints").newest()
    assert restored is not None and restored.optimizer is not None and restored.data is not None
    return restored.snapshot.progress["step"]


def reported_steps(home: Path) -> int:
    """The last step in the metrics."""
    return max(event["step"] for event in read(home / "checkpoints") if event["event"] == "step")
