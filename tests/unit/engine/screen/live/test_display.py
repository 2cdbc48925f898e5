"""The panel in a real pseudo-terminal: drawn, resized, paused, left clean; and nobody else's output in it."""

import re
from pathlib import Path

import pytest

from tests.helpers.terminal import Screen
from tests.helpers.text import REPOSITORY

# Shows a run of events that its standard input asks for, one letter an action.
PROGRAM = """
import logging, os, sys, time, tty, warnings
from pathlib import Path
from engine.run_log import library_log
from engine.screen.console import Console
from tests.helpers.run_view import NOW, evaluation_event, run_event, step_event

tty.setcbreak(0)  # each letter at once
folder = Path(sys.argv[1])
console = Console()
step = 0

def question(sentence):
    return input(sentence) == "yes"

with library_log(lambda: folder, 0, lambda: None) as log, console.live(folder, log, "tiny"):
    ask = console.asking(question)
    console.show({"event": "stage", "time": time.time(), "name": "tokenizer", "seconds": None})
    while letter := os.read(0, 1).decode():
        if letter == "s":
            for _ in range(10):
                step += 1
                console.show(step_event(step, 3.0 + 5.0 / step) | {"time": NOW + 10 * step})
        elif letter == "r":
            console.show({"event": "stage", "time": time.time(), "name": "tokenizer", "seconds": 2.0})
            console.show(run_event())
        elif letter == "e":
            console.show(evaluation_event(step, sample={"prompt": "\\x1b[2J", "text": "\\u202e[red]evil\\x07"}))
        elif letter == "m":
            console.say(f"message {step}")
        elif letter == "n":  # what others write
            print("a print"); sys.stdout.flush()
            os.write(1, b"raw output\\n"); os.write(2, b"raw error\\n"); os.system("echo from a child")
            warnings.warn("a warning with hf_A1b2C3d4E5f6G7h8")
            logging.getLogger("DeepSpeed").error("a record")
            console.say("noise made")
        elif letter == "a":
            console.say(f"answered {ask('Really? ')}")
        elif letter == "x":
            console.error("the reason")
            break
        elif letter == "q":
            break
print("after the panel")
"""
SIZES = [(80, 24), (120, 40), (200, 60)]


@pytest.fixture
def display(tmp_path: Path):
    """Starts the program in a terminal of some size."""
    screens = []

    def start(size: tuple[int, int] = (80, 24), **variables: str) -> Screen:
        screen = Screen(PROGRAM, str(tmp_path), cwd=REPOSITORY, size=size, variables=variables)
        screens.append(screen)
        screen.until("preparing the tokenizer")
        return screen

    yield start
    for screen in screens:
        if screen.process.poll() is None:
            screen.kill()


@pytest.mark.slow
def test_a_run_from_its_first_stage_to_its_end(display):
    screen = display()
    screen.until(lambda text: re.search(r"\S preparing the tokenizer  \d+ s", text))
    screen.type("r")
    screen.until("Run 3 of tiny")
    screen.type("ss")
    screen.until("step 20 ──")
    screen.type("em")
    shown = screen.until("message 20")
    assert shown.index("message 20") < shown.index("step 20 ──"), "messages stand above the panel"
    assert shown.count("── tiny") == 1 and "�[2J�[red]evil�" in shown, shown
    screen.type("q")
    screen.until("after the panel")
    assert screen.rest() == 0
    lines = [line for line in screen.shown().splitlines() if line]
    assert lines[-1] == "after the panel" and screen.everything().count("── tiny") == 1


@pytest.mark.parametrize("size", [SIZES[0], *(pytest.param(size, marks=pytest.mark.slow) for size in SIZES[1:])])
def test_the_panel_follows_the_size(display, size: tuple[int, int]):
    screen = display(size)
    screen.type("rsse")
    screen.until("validation loss")
    for columns, rows in (*SIZES, (50, 12), size):
        screen.resize(columns, rows)
        shown = screen.until(lambda text, wide=columns: re.search(rf"^── tiny.{{{wide - 10},}}──$", text, re.MULTILINE))
        assert shown.count("── tiny") == 1 and max(map(len, shown.splitlines())) <= columns
    screen.type("q")
    assert screen.rest() == 0


def test_what_others_write_goes_to_the_log(display, tmp_path: Path):
    screen = display()
    screen.type("rsn")
    shown = screen.until("noise made")
    assert not re.search("raw|print|child|warning|record", shown)
    screen.type("q")
    screen.rest()
    log = (tmp_path / "run.log").read_text()
    for text in ("raw output", "raw error", "from a child", "a print", "a warning with hf_***", "a record"):
        assert text in log
    assert "A1b2" not in log and "raw" not in screen.everything()


def test_a_question_has_the_terminal_for_itself(display):
    screen = display()
    screen.type("rs")
    screen.until("step 10 ──")
    screen.type("a")
    assert "── tiny" not in screen.until("Really?")
    screen.type("yes\n")
    assert "── tiny" in screen.until("answered True")
    screen.type("q")
    screen.until("after the panel")
    assert screen.rest() == 0


def test_an_error_stands_below_the_last_state(display):
    screen = display()
    screen.type("rs")
    screen.until("step 10 ──")
    screen.type("x")
    screen.until("after the panel")
    screen.rest()
    shown = screen.everything()
    assert shown.index("step 10 ──") < shown.index("stopped: the reason") < shown.index("after the panel")


def test_no_colour_means_none(display):
    screen = display(NO_COLOR="1")
    screen.type("rse")
    screen.until("validation loss")
    screen.type("q")
    screen.rest()
    colours = set(re.findall(rb"\x1b\[([\d;]+)m", screen.raw))
    assert colours and all(set(colour.split(b";")) <= {b"0", b"1", b"2", b"3"} for colour in colours)


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"CI": "true"}])
def test_a_terminal_that_cannot_draw_gets_lines(display, variables: dict[str, str]):
    screen = display((120, 40), **variables)
    screen.type("rs")
    shown = screen.until("step 10 ")
    screen.type("q")
    screen.rest()
    assert re.search(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  step 9 ", shown, re.MULTILINE)
    assert not re.search(rb"\x1b\[\d*[A-HJK]", screen.raw), "nothing moves the cursor"
    assert "──" not in shown
