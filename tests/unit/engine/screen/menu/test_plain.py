"""engine/screen/menu/plain.py: a terminal that only prints."""

import json
from pathlib import Path

import pytest

from tests.helpers.terminal import Terminal

PROGRAM = """
from engine.screen import menu
chosen = menu.choose_for_all(100)
print("chosen:", chosen if isinstance(chosen, str) else chosen["name"], flush=True)
"""
DUMB = {"TERM": "dumb", "COLUMNS": "200"}


@pytest.fixture
def terminal(home: Path):
    started = Terminal(PROGRAM, cwd=home, variables=DUMB)
    yield started
    started.process.kill()


def test_the_presets_are_printed_and_a_line_is_read(terminal):
    shown = terminal.read("[00_tiny]: ")
    assert "00_tiny" in shown and "reachable" in shown and "\x1b[?1049h" not in shown
    assert "'seven' is no preset" in terminal.type("seven\n", "[00_tiny]: ")
    assert "DeepSpeed's configuration:" in terminal.type("d 00\n", "[00_tiny]: ")
    assert "report.html does not exist yet" in terminal.type("r\n", "[00_tiny]: ")
    terminal.type("\n", "chosen: tiny")


def test_a_new_preset_is_asked_for_in_lines(terminal, home: Path):
    terminal.read("[00_tiny]: ")
    terminal.type("n\n", "Text: ")
    assert "no folder, file or dataset" in terminal.type("./nowhere\n", "Text: ")
    for answer, question in (("", "Tokenizer"), ("", "WIDTHxLAYERS"), ("48x1", "Sequence"), ("", "Name")):
        terminal.type(f"{answer}\n", question)
    terminal.type("mine\n", "[01_mine]: ")
    assert json.loads((home / "configs" / "01_mine.json").read_text())["model"]["hidden_size"] == 48
    terminal.type("\n", "chosen: mine")


def test_q_leaves(terminal):
    terminal.read("[00_tiny]: ")
    terminal.type("q\n", "\n")
    assert terminal.end() == 0
