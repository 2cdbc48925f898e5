"""engine/screen/conversation.py in a process of its own: at a real terminal, and through a pipe."""

import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.helpers import checkpoints
from tests.helpers.processes import start
from tests.helpers.terminal import Terminal
from tests.helpers.text import REPOSITORY

PROGRAM = "import sys; from pathlib import Path; from engine.screen.conversation import Conversation as C; "
PROGRAM += "C(Path(sys.argv[1])).run()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two generations of an untrained model."""
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoints.write_model(folder / "lm_current.pth", preset={})
    shutil.copy(folder / "lm_current.pth", folder / "lm_prev.pth")
    (folder / "other.pth").write_text("no snapshot")
    return folder


def piped(folder: Path, lines: str) -> tuple[int, str]:
    process = start(PROGRAM, str(folder), cwd=REPOSITORY)
    shown, _ = process.communicate(lines, timeout=120)
    return process.wait(), shown


def test_prompts_settings_and_snapshots_in_lines(folder):
    lines = [
        "/help", "/temperature", "/temperature 0", "/top_p 2", "/temprature 1", "/stop \\n", "/max_new_tokens 7",
        "/settings", "the quick", "/seed 3", "/seed none", "/reset", "/settings", "/model", "/model lm_prev.pth",
        "/model nothing.pth", "/model other.pth", "//slash", "", "never read",
    ]  # fmt: skip
    status, shown = piped(folder, "\n".join(lines) + "\n")
    assert status == 0
    for expected in (
        "lm_current.pth: 8",  # thousand parameters
        "/temperature VALUE          0: always the likeliest token",
        "/temperature is 0.8: 0: always the likeliest token",
        "temperature is 0 now.",
        "top_p is 2; give a number above 0 and up to 1.",
        "There is no /temprature; did you mean /temperature?",
        "stop is '\\n' now.",
        "max_new_tokens 7, temperature 0, temperature_offset None, top_p 0.9, top_k None, min_p None",
        "seed is 3 now.",
        "seed is None now.",
        "The settings are as they were at the start.",
        "max_new_tokens 200, temperature 0.8",
        "holds lm_current.pth, lm_prev.pth, other.pth.",
        "lm_prev.pth answers now.",
        "holds no nothing.pth; there are lm_current.pth",
        "other.pth: not a checkpoint",
    ):
        assert expected in shown, (expected, shown)
    assert shown.count("beyond seq_length 16") == 1
    assert shown.count(" a second)") == 2 and "(7 tokens, " in shown


def test_the_end_of_input_and_quit_end_it(folder):
    assert piped(folder, "")[0] == 0
    status, shown = piped(folder, "/quit\nthe\n")
    assert status == 0 and "a second)" not in shown


def test_a_plan_is_a_small_tree(tmp_path):
    """With weights by which the likeliest candidate seldom wins."""
    lm = checkpoints.planning_model()
    lm.save(tmp_path / "lm_current.pth")
    lines = [
        "/plan true",
        "/temperature 0",
        "/plan true",
        "/max_new_tokens 12",
        "the quick",
        "/temperature adaptive",
        "",
    ]
    status, shown = piped(tmp_path, "\n".join(lines) + "\n")
    assert status == 0
    assert "plan draws nothing; give temperature=0 too." in shown and "plan is True now." in shown
    assert "(planned at " in shown and " candidates weighed, " in shown
    tree = shown[shown.index("(planned at ") :]
    assert tree.count("▶") == tree.count("└") == tree.count("  after ") >= 1
    assert "log p -" in tree and "not read: " in tree


def test_ctrl_c_ends_an_answer_and_not_the_program(folder):
    terminal = Terminal(PROGRAM, str(folder), cwd=REPOSITORY, variables={"TERM": "xterm"})
    terminal.read("> ")
    for setting in ("temperature 0", "no_repeat_ngram 0", "max_new_tokens 100000000"):
        terminal.type(f"/{setting}\n", "now.")
    terminal.type("the quick\n", "the quick")
    time.sleep(0.5)
    terminal.process.send_signal(signal.SIGINT)
    assert "Traceback" not in terminal.read("(stopped)")
    terminal.process.send_signal(signal.SIGINT)  # while it waits for a prompt
    terminal.read("(an empty line ends)")
    terminal.type("/max_new_tokens 5\n", "now.")
    terminal.type("\x1b[A", "/max_new_tokens 5")  # the arrow up brings the last line back
    terminal.type("\x15the\n", "(5 tokens, ")
    assert "Traceback" not in terminal.type("\n", "\n")
    assert terminal.end() == 0
