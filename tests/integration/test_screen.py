"""A run as it is seen at a terminal: main.py's panel from its start to each of its ends, alone and on two ranks."""

import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.events import read
from engine.run_log import FILE_NAME
from tests.helpers.processes import TORCHRUN
from tests.helpers.terminal import Screen
from tests.helpers.text import REPOSITORY

MAIN = REPOSITORY / "main.py"
TITLE = r"^── tiny · run 1 · .* ─+ step {} ──$"


@pytest.fixture
def start(home: Path) -> Iterator:
    """Starts main.py in `home` with the tiny preset, at a terminal of some size."""
    screens: list[Screen] = []

    def screen(size: tuple[int, int] = (80, 24), launcher: tuple[str, ...] = (), **variables: str) -> Screen:
        found = Screen(MAIN, cwd=home, size=size, launcher=launcher, variables=variables)
        screens.append(found)
        found.until("00_tiny")
        found.type("00\n")
        return found

    yield screen
    for one in screens:
        if one.process.poll() is None:
            one.kill()


def trains(text: str) -> object:
    return re.search(TITLE.format(r"[\d,]+"), text, re.MULTILINE) and "perplexity" in text


def test_a_run_is_one_panel_until_it_is_stopped(start, home: Path):
    screen = start()
    shown = screen.until(trains)
    assert "tokens/s" in shown and "of 100M tokens" in shown and "◆ validation loss" in shown
    screen.process.send_signal(signal.SIGTERM)
    assert screen.rest() == 143
    everything = screen.everything()
    assert everything.count("── tiny") == 1 and "· stopped ──" in everything and "Run 1 of tiny" in everything
    assert everything.rstrip().endswith("continues from there.") and "stopped: SIGTERM at step" in everything
    assert (home / "checkpoints" / FILE_NAME).is_file()
    assert read(home / "checkpoints")[-1]["how"] == "stopped"


def test_ctrl_c_during_a_start_leaves_a_clean_terminal(start):
    screen = start()
    screen.until(lambda text: re.search("^── (starting|tiny)", text, re.MULTILINE))
    screen.process.send_signal(signal.SIGINT)
    assert screen.rest() == 130
    lines = [line for line in screen.everything().splitlines() if line]
    assert "stopped: SIGINT" in " ".join(lines[-2:]) and sum(line.startswith("── ") for line in lines) <= 1
    assert not screen.raw.endswith(b"\x1b[?25l"), "the cursor is there"


@pytest.mark.slow
def test_a_second_start_offers_to_watch(start, home: Path):
    first = start()
    first.until(trains)
    second = start((120, 40))
    second.until("Watch that run? [Y/n]")
    second.type("\n")
    second.until(trains)
    second.process.send_signal(signal.SIGINT)
    assert second.rest() == 0 and "The run goes on." in second.shown()
    first.until("tokens/s")
    assert first.process.poll() is None
    first.process.send_signal(signal.SIGINT)
    assert first.rest() == 130 and "SIGINT at step" in first.everything()


@pytest.mark.slow
def test_two_ranks_share_a_terminal(start, home: Path):
    screen = start((100, 30), launcher=(sys.executable, *TORCHRUN))
    shown = screen.until(trains)
    assert shown.count("── tiny") == 1
    screen.process.send_signal(signal.SIGINT)
    screen.rest()
    assert "· stopped ──" in screen.everything() and "SIGINT at step" in screen.everything()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
def test_a_run_follows_the_terminals_size(start, size: tuple[int, int]):
    screen = start(size)
    screen.until(trains)
    for columns, rows in ((120, 40), (80, 24), (40, 10), (200, 60)):
        screen.resize(columns, rows)
        shown = screen.until(lambda text, wide=columns: re.search(rf"^── tiny.{{{wide - 10},}}──$", text, re.MULTILINE))
        assert shown.count("── tiny") == 1
    screen.process.send_signal(signal.SIGTERM)
    assert screen.rest() == 143
