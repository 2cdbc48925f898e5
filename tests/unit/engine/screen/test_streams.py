"""Standard streams that are closed, full, of another encoding, or would show a secret."""

import io
import sys

import pytest

from engine.screen.streams import OUTPUT, can_draw
from tests.helpers.processes import start
from tests.helpers.terminal import Screen

CLOSED = """
import os, sys
for number in range(3):
    os.close(number)
sys.stdin = sys.stdout = sys.stderr = None  # as the interpreter has it then
from engine.screen.streams import prepare_streams
prepare_streams()
print("into nothing")
print("into nothing", file=sys.stderr)
with open(sys.argv[1], "w") as file:
    file.write(f"{file.fileno() > 2} {sys.stdin.read()!r}")
os.system("echo from another program; echo and its errors >&2")
"""
SECRET = """
import warnings
from engine.screen.streams import prepare_streams
prepare_streams()
print(repr(input()))
warnings.warn("the token is hf_A1b2C3d4E5f6G7h8")
"""


def test_closed_streams_are_opened_and_take_no_files_place(tmp_path):
    process = start(CLOSED, str(tmp_path / "file"), cwd=tmp_path)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and output == ""
    assert (tmp_path / "file").read_text() == "True ''"


def test_a_wrong_key_is_an_answer_and_a_warning_holds_no_secret(tmp_path):
    process = start(SECRET, cwd=tmp_path)
    process.stdin.buffer.write(b"0\xff\n")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and output.startswith("'0\N{REPLACEMENT CHARACTER}'\n"), output
    assert "the token is hf_***" in output and "A1b2" not in output


def test_what_an_encoding_lacks_is_replaced(monkeypatch: pytest.MonkeyPatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert OUTPUT.write("naïve \U0001f600\n") == 8
    OUTPUT.flush()
    assert written.getvalue() == b"na?ve ?\n" and OUTPUT.encoding == "ascii"


def test_a_full_disk_ends_nothing(monkeypatch: pytest.MonkeyPatch):
    full = io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True)
    monkeypatch.setattr(sys, "stdout", full)
    with pytest.raises(OSError):
        print("x")
    assert OUTPUT.write("x" * 100_000) == 100_000
    OUTPUT.flush()


TERMINAL = """
import os, sys
from engine.screen.streams import can_draw, own_terminal
with own_terminal() as terminal:
    kept = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    print("to nobody", flush=True)
    terminal.write(f"to the terminal, {can_draw()}\\n")
    terminal.flush()
    os.dup2(kept, 1)
print(can_draw(), terminal.isatty() if not terminal.closed else "closed")
"""


def test_the_terminal_can_be_kept_apart_from_standard_output(tmp_path):
    screen = Screen(TERMINAL, cwd=tmp_path)
    shown = screen.until("True closed")
    assert screen.rest() == 0 and "to the terminal, False" in shown and "nobody" not in shown


def test_a_stream_that_is_no_terminal_or_closed_is_not_drawn_on(monkeypatch: pytest.MonkeyPatch):
    assert not can_draw()
    monkeypatch.setattr(sys, "stdout", None)
    assert not can_draw()
    closed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    closed.close()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", closed)
    assert not can_draw()


def test_a_terminal_without_the_letters_is_not_drawn_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    for encoding, can in (("utf-8", True), ("ascii", False)):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        stream.isatty = lambda: True
        monkeypatch.setattr(sys, "stdout", stream)
        assert can_draw() == can
