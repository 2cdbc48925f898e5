"""Watching a run of another process: what is written to its events is what is shown."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import storage
from engine.events import FILE_NAME
from engine.screen.live.watch import Follower, holder_is_gone
from tests.helpers.processes import run_program
from tests.helpers.run_view import NOW, run_event, step_event
from tests.helpers.terminal import Screen
from tests.helpers.text import REPOSITORY

PROGRAM = """
import sys
from pathlib import Path
from engine.screen.live.watch import offered
print("offered:", offered(Path(sys.argv[1])))
"""


def write(folder: Path, *events: dict, end: str = "\n") -> None:
    with (folder / FILE_NAME).open("a") as file:
        file.write("\n".join(map(json.dumps, events)) + end)


def hold(folder: Path, process: int) -> None:
    (folder / storage.LOCK).write_text(f"process {process} on {socket.gethostname()}\n")


@pytest.fixture
def ended() -> int:
    """The number of a process that there is no longer."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_new_lines_are_read_once_and_only_whole(tmp_path: Path):
    write(tmp_path, run_event(), step_event(1))
    follower = Follower(tmp_path)
    assert follower.begin().latest["step"]["step"] == 1 and list(follower.new()) == []
    text = json.dumps(step_event(2))
    with (tmp_path / FILE_NAME).open("a") as file:
        file.write(text[:50])
        file.flush()
        assert list(follower.new()) == []
        file.write(text[50:] + "\nno event\n")
    assert [event["step"] for event in follower.new()] == [2]
    (tmp_path / FILE_NAME).rename(tmp_path / "archived")
    assert list(follower.new()) == []
    write(tmp_path, step_event(1))
    assert [event["step"] for event in follower.new()] == [1], "another file has the name"


def test_a_run_is_watched_to_its_end(tmp_path: Path):
    hold(tmp_path, os.getpid())
    write(tmp_path, run_event(), *(step_event(step) for step in range(1, 30)))
    screen = Screen(PROGRAM, str(tmp_path), cwd=REPOSITORY, size=(100, 30))
    screen.until("Watch that run? [Y/n]")
    screen.type("\n")
    screen.until("step 29 ──")
    write(tmp_path, step_event(30), {"event": "spike", "time": NOW, "step": 30, "loss": 9.0, "threshold": 8.0})
    shown = screen.until("step 30 ──")
    assert "spike  step 30: loss 9.0000 is above 8.0000" in shown and "1 spike" in shown
    write(tmp_path, {"event": "end", "time": NOW, "how": "stopped", "message": "SIGTERM at step 30; saved."})
    screen.until("offered: True")
    shown = screen.everything()
    assert re.search(r"step 30 · stopped ──\n(.*\n)+SIGTERM at step 30; saved\.\noffered", shown)
    assert screen.rest() == 0


@pytest.mark.parametrize("size", [(80, 24), (200, 60)])
def test_ctrl_c_leaves_the_watcher_alone(tmp_path: Path, size: tuple[int, int]):
    hold(tmp_path, os.getpid())
    write(tmp_path, run_event(), *(step_event(step) for step in range(1, 30)))
    screen = Screen(PROGRAM, str(tmp_path), cwd=REPOSITORY, size=size)
    screen.until("Watch that run? [Y/n]")
    screen.type("y\n")
    screen.until("step 29 ──")
    screen.process.send_signal(signal.SIGINT)
    shown = screen.until("offered: True")
    assert "The run goes on." in shown and screen.rest() == 0


def test_a_run_that_is_killed_is_noticed(tmp_path: Path, ended: int):
    write(tmp_path, run_event(), step_event(1))
    hold(tmp_path, ended)
    screen = Screen(PROGRAM, str(tmp_path), cwd=REPOSITORY)
    screen.until("Watch that run? [Y/n]")
    screen.type("\n")
    assert "its process is gone" in screen.until("offered: True")
    screen.rest()


def test_who_says_no_or_has_no_terminal_is_not_shown_anything(tmp_path: Path):
    screen = Screen(PROGRAM, str(tmp_path), cwd=REPOSITORY)
    screen.until("Watch that run? [Y/n]")
    screen.type("n\n")
    screen.until("offered: False")
    screen.rest()
    assert run_program(PROGRAM, str(tmp_path), answer="\n") == (0, "offered: False\n")


def test_a_holder_elsewhere_is_not_known_to_be_gone(tmp_path: Path, ended: int):
    assert not holder_is_gone(tmp_path), "no lock at all"
    hold(tmp_path, ended)
    assert holder_is_gone(tmp_path)
    hold(tmp_path, os.getpid())
    assert not holder_is_gone(tmp_path)
    (tmp_path / storage.LOCK).write_text(f"process {ended} on another machine\n")
    assert not holder_is_gone(tmp_path)
