"""Starts of main.py as jobs of several processes."""

import contextlib
import json
import re
import subprocess
import time
from pathlib import Path

import psutil

STEP_LINE = r"^step +\d+ "


class Job:
    """A start of main.py, by itself or by a launcher; whatever it starts works in the same folder."""

    def __init__(self, home: Path, process: subprocess.Popen[str]):
        self.home, self.process = home, process
        self.output = ""

    def until(self, pattern: str) -> None:
        for line in self.process.stdout:
            self.output += line
            if re.search(pattern, line):
                return
        raise AssertionError(f"{pattern!r} never came:\n{self.output[-3000:]}")

    def rest(self) -> str:
        """The output from here on, once everybody who could write has ended."""
        rest = self.process.stdout.read()
        self.output += rest
        return rest

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
