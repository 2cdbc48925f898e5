import io
import os
import signal
import sys
from pathlib import Path

import pytest

from engine.screen.dialog import ask, interruptible, moves_the_cursor, say, working
from tests.helpers.machines import remembering
from tests.helpers.terminal import Screen, Terminal
from tests.helpers.text import REPOSITORY


def test_a_pipe_is_asked_without_the_question(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\nlast"))
    assert [ask("which? ") for _ in range(4)] == ["one", "", "last", None]
    assert capsys.readouterr().out == ""


def test_a_terminal_sees_a_question_that_controls_nothing():
    program = "from engine.screen.dialog import ask; print([ask('\\x1b]which? '), ask('and? ')])"
    terminal = Terminal(program, cwd=REPOSITORY, variables={})
    assert "\x1b" not in terminal.read("]which? ")
    terminal.type("this\n", "and? ")
    terminal.type("\x04", "['this', None]")
    assert terminal.end() == 0


def test_what_is_said_controls_no_terminal(capsys):
    say("a\x1b[31m", end="")
    assert capsys.readouterr().out == "a\N{REPLACEMENT CHARACTER}[31m"


def test_ctrl_c_raises_inside_only():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(KeyboardInterrupt), interruptible():
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_takes_a_while_is_shown_at_a_terminal_and_gone_after_it(capsys, tmp_path: Path):
    with working("Counting"):
        print("counted")
    assert capsys.readouterr().out == "counted\n" and not moves_the_cursor()
    imports = "import time; from engine.screen.dialog import working"
    program = f"{imports}\nwith working('Counting'): time.sleep(2)\nprint('counted')"
    for expected in ("Counting ...", "Counting ... (about 2 s)"):
        screen = Screen(program, cwd=REPOSITORY, variables=remembering(tmp_path))
        screen.until(expected, moving=True)
        screen.until("counted")
        assert screen.rest() == 0 and "Counting" not in screen.shown()
