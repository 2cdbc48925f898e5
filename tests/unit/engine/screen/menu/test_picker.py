"""engine/screen/menu/picker.py at real pseudo-terminals: keys, sizes, Ctrl-C."""

import json
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import storage
from engine.checkpoint.folder import CheckpointFolder
from engine.config import load_preset
from tests.helpers import checkpoints
from tests.helpers.terminal import Screen

PROGRAM = """
from engine.errors import RunError
from engine.screen import menu
try:
    chosen = menu.choose_for_all(100)
    print("chosen:", chosen if isinstance(chosen, str) else chosen["name"], flush=True)
except RunError as error:
    print("stopped:", error, error.status, flush=True)
"""
DOWN, UP, END = "\x1b[B", "\x1b[A", "\x1b[F"


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., Screen]]:
    """Starts the menu of three presets: one whose data is missing, `second`, and one that is called `report`."""
    screens = []
    values = json.loads((home / "configs" / "00_tiny.json").read_text())
    for name in ("01_second", "02_report"):
        (home / "configs" / f"{name}.json").write_text(json.dumps({**values, "name": name[3:]}))
    values["data"]["sources"] = [{"type": "files", "path": "./nowhere"}]
    (home / "configs" / "00_tiny.json").write_text(json.dumps(values))

    def start_menu(columns: int = 80, rows: int = 24, **variables: str) -> Screen:
        screens.append(Screen(PROGRAM, cwd=home, size=(columns, rows), variables={"LANG": "C.UTF-8", **variables}))
        return screens[-1]

    yield start_menu
    for screen in screens:
        screen.process.kill()


def settled(screen: Screen, selected: str = "> 01_second") -> str:
    """The whole screen once this line is selected."""
    return screen.until(lambda shown: selected in shown and "q quit" in shown)


def ended(screen: Screen) -> str:
    """What stands on the terminal when the program has ended."""
    screen.rest()
    return screen.everything()


def train_before(home: Path, name: str, **progress: object) -> None:
    snapshot = checkpoints.snapshot(41)
    snapshot = replace(snapshot, preset={"name": name}, progress={**snapshot.progress, **progress})
    CheckpointFolder(home / "checkpoints").save(snapshot, checkpoints.optimizer(41), {})


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (120, 40), (200, 60)])
def test_enter_takes_the_first_preset_whose_data_can_be_reached(start, columns: int, rows: int):
    screen = start(columns, rows)
    text = settled(screen)
    assert "00_tiny" in text
    assert re.search(r"(about |~)\d+ (min|h|days)|under a minute", text)
    screen.type("\r")
    assert "chosen: second" in ended(screen)


def test_enter_at_once_waits_until_it_is_known_what_can_be_reached(start):
    screen = start()
    screen.type("\r")
    assert "chosen: second" in ended(screen)


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        (DOWN + UP + DOWN + DOWN + "\r", "report"),
        (END + UP + UP + UP + "\r", "tiny"),
        ("02\r", "report"),
        ("1\r", "second"),
        ("report\r", "report"),  # begins as the key that opens the report
        ("01_second\r", "second"),
        ("9\x7f1\r", "second"),
        ("/se\x1b", None),
    ],
)
def test_keys_numbers_and_names(start, keys: str, chosen: str | None):
    screen = start()
    settled(screen)
    screen.type(keys)
    if chosen is None:
        screen.until("q quit")
        screen.type("\r")
    assert f"chosen: {chosen or 'second'}" in ended(screen)


def test_what_is_no_preset_is_said_and_asked_again(start, home: Path):
    (home / "configs" / "03_broken.json").write_text('{"trian": {}}')
    screen = start(120, 30)
    screen.type("77\r")
    screen.until("'77' is no preset; there are 00_tiny, 01_second")
    screen.type(END + "\r")
    screen.until('did you mean "train"?')
    screen.type("1\r")
    assert "chosen: second" in ended(screen)


def test_enter_resumes_the_run_that_is_in_the_folder(start, home: Path):
    train_before(home, "tiny", run=2)  # whose data cannot be reached now
    screen = start()
    text = settled(screen, "> 00_tiny")
    assert "run 2, 41%: Enter resumes" in text and "Enter resumes  d details" in text
    screen.type("\r")
    assert "chosen: tiny" in ended(screen)


def test_a_run_of_a_preset_that_is_gone_is_named(start, home: Path):
    train_before(home, "deleted")
    screen = start(120, 30)
    screen.until("holds run 1, 41% of preset deleted, which is not in configs/.")
    settled(screen)


def test_enter_watches_a_run_that_another_process_trains(start, home: Path):
    train_before(home, "second")
    with storage.locked(home / "checkpoints", print) as holder:
        assert holder is None
        screen = start(100, 30)
        text = settled(screen)
        assert "A run trains in checkpoints/ now (second, run 1, 41%): Enter watches it" in text
        assert "Enter watches  d details" in text
        screen.type(UP + "\r")  # whichever is selected
        screen.until("── starting")
        screen.process.send_signal(signal.SIGINT)
        assert screen.rest() == 0
    assert "The run goes on." in screen.everything() and "chosen" not in screen.everything()


def test_another_preset_than_the_folders_is_explained(start, home: Path):
    train_before(home, "second")
    screen = start(120, 30)
    settled(screen)
    screen.type(DOWN)
    screen.until("> 02_report")
    said = " ".join(screen.shown().split())
    assert "checkpoints/ holds run 1, 41% of second. This preset goes on with that model if it has the" in said


def test_details_report_and_quitting(start, home: Path):
    screen = start(100, 24)
    settled(screen)
    screen.type("d")
    screen.until("tokens a step")
    screen.type(END)
    screen.until('"timers"')
    screen.type("d")
    screen.until("q quit")
    screen.type("g")
    screen.until("lm_current.pth does not exist yet: train a preset first.")
    (home / "checkpoints").mkdir()
    (home / "checkpoints" / "report.html").write_text("x" * 5000)
    screen.type("r")
    screen.until("checkpoints/report.html: 5 kB, written 2")
    screen.type("q")
    assert screen.rest() == 0


def test_with_a_snapshot_letters_choose_what_to_do_with_it(start, home: Path):
    train_before(home, "second")
    screen = start()
    screen.until("Enter resumes")
    screen.type("e")
    assert "chosen: e" in ended(screen)


def test_a_new_preset_is_asked_for_in_five_questions_and_selected(start, home: Path):
    screen = start(100, 30)
    settled(screen)
    screen.type("n")
    screen.until("Text: ")
    screen.type("./nowhere")
    screen.until("no folder, file or dataset")
    screen.type("\x15\r")
    for question, answer in (("Tokenizer: ", ""), ("WIDTHxLAYERS", "48x1"), ("Sequence", "16"), ("Name", "mine")):
        screen.until(question)
        screen.type(f"{answer}\r")
    screen.until("> 03_mine")
    made = load_preset(home / "configs" / "03_mine.json")
    assert (made.model.hidden_size, made.model.num_layers, made.model.seq_length) == (48, 1, 16)
    screen.type("\r")
    assert "chosen: mine" in ended(screen)


def test_giving_up_a_new_preset_returns_to_the_menu(start, home: Path):
    screen = start()
    settled(screen)
    screen.type("n")
    screen.until("Text: ")
    screen.type("\x03")
    screen.until("q quit")
    assert len(list((home / "configs").iterdir())) == 3


def test_a_terminal_that_is_resized_is_filled_again(start):
    screen = start(200, 60)
    screen.until("+")
    screen.resize(80, 24)
    screen.type(DOWN)
    text = screen.until("> 02_report")
    assert max(map(len, text.splitlines())) <= 80
    screen.resize(40, 8)
    screen.type(UP)
    screen.until("> 01_")


@pytest.mark.parametrize("key", ["\x03", "SIGTERM", "SIGHUP"])
def test_a_signal_leaves_the_terminal_as_it_was(start, key: str):
    screen = start()
    settled(screen)
    if key == "\x03":
        screen.type(key)
    else:
        screen.process.send_signal(signal.Signals[key])
    name = {"\x03": "SIGINT"}.get(key, key)
    text = ended(screen)
    assert f"stopped: {name} before the first step; there was nothing to save. {128 + signal.Signals[name]}" in text
    assert "Traceback" not in text


def test_without_colours_the_selected_line_is_marked(start):
    screen = start(NO_COLOR="1")
    settled(screen)
    assert {cell.fg for line in screen.cells() for cell in line} == {"default"}
