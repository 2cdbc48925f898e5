"""engine/screen/live/keyboard.py in a real pseudo-terminal: no echo while there is a panel, and always one after it."""

import signal
import time
from pathlib import Path

import pytest

from engine.screen.live.keyboard import Keyboard
from tests.helpers.terminal import Screen
from tests.helpers.text import REPOSITORY

PROGRAM = """
import os, signal, sys
from engine.screen.live.keyboard import Keyboard
from engine.screen.streams import own_terminal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
with own_terminal() as terminal:
    keyboard = Keyboard(terminal)
    print("ready", flush=True)
    signal.sigwait({signal.SIGUSR1})
    keyboard.restore()
    keyboard.restore()
    print("over", flush=True)
    print("typed:", sys.stdin.readline(), flush=True)
"""


@pytest.fixture
def screen():
    found = Screen(PROGRAM, cwd=REPOSITORY)
    yield found
    if found.process.poll() is None:
        found.kill()


def test_what_is_typed_is_neither_shown_nor_kept(screen: Screen):
    screen.until("ready")
    assert not screen.echoes()
    screen.type("abc\n")
    time.sleep(0.1)
    screen.process.send_signal(signal.SIGUSR1)
    assert "abc" not in screen.until("over")
    assert screen.echoes()
    screen.type("xyz\n")
    assert "xyz\ntyped: xyz" in screen.until("typed:")
    assert screen.rest() == 0


def test_a_process_that_is_killed_leaves_a_terminal_that_echoes(screen: Screen):
    screen.until("ready")
    screen.process.kill()
    deadline = time.monotonic() + 5
    while not screen.echoes():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_another_program_s_modes_are_left_alone(screen: Screen):
    """As a shell's that reads the next command already, key by key."""
    screen.until("ready")
    screen.read_keys_singly()
    screen.process.kill()
    time.sleep(0.5)
    assert not screen.echoes()


def test_what_is_no_terminal_has_no_echo(tmp_path: Path):
    with (tmp_path / "file").open("w") as file:
        keyboard = Keyboard(file)
        keyboard.restore()
        assert keyboard._guard is None
