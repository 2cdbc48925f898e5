"""Where events and messages go: to lines with the time, or to a terminal."""

import re
from pathlib import Path

import pytest

from engine.screen.console import Console
from tests.helpers.run_event import RUN
from tests.helpers.run_view import run_event, step_event
from tests.helpers.terminal import Screen
from tests.helpers.text import REPOSITORY

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "
PROGRAM = """
from engine.screen.console import Console
console = Console()
console.say("a message")
console.error("a reason")
print("the end")
"""


def test_lines_begin_with_the_time(capsys: pytest.CaptureFixture[str]):
    console = Console()
    console.show(run_event())
    console.show(step_event(1))
    console.say("a [message]")
    console.warn("b")
    console.error("c")
    *run, step, said, warning, error = capsys.readouterr().out.splitlines()
    assert all(re.match(STAMP, line) for line in (*run, step, said, warning, error))
    assert re.fullmatch(f"{STAMP}Run 3 of tiny: .*", run[0])
    assert re.match(f"{STAMP}step 1  100k tokens", step) and re.fullmatch(rf"{STAMP}a \[message\]", said)
    assert re.fullmatch(f"{STAMP}warning: b", warning) and re.fullmatch(f"{STAMP}stopped: c", error)


def test_other_ranks_print_nothing(capsys: pytest.CaptureFixture[str]):
    console = Console(enabled=False)
    console.show(RUN)
    console.say("a")
    console.warn("b")
    console.error("c")
    assert not capsys.readouterr().out


@pytest.mark.parametrize(("term", "stamped"), [("xterm", False), ("dumb", True)])
def test_a_terminal_without_a_panel_needs_no_time(tmp_path: Path, term: str, stamped: bool):
    screen = Screen(PROGRAM, cwd=REPOSITORY, variables={"TERM": term})
    shown = screen.until("the end")
    screen.rest()
    lines = [line for line in shown.splitlines() if line]
    stamp = STAMP if stamped else ""
    for line, text in zip(lines, ("a message", "stopped: a reason"), strict=False):
        assert re.fullmatch(stamp + text, line)
