"""Standard streams that are closed, full, of another encoding, or would show a secret."""

import io
import sys

import pytest

from engine.screen.streams import OUTPUT
from tests.helpers.processes import start

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
