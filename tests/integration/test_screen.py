"""A run as it is seen at a terminal: main.py's panel from its start to each of its ends, alone and on two ranks."""

import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from engine.events import read
from engine.run_log import FILE_NAME
from engine.screen.live.lines import STAGES
from tests.helpers.jobs import configure, saved_steps
from tests.helpers.machines import remembering
from tests.helpers.processes import TORCHRUN
from tests.helpers.terminal import Screen
from tests.helpers.text import REPOSITORY

MAIN = REPOSITORY / "main.py"
CHANGED = REPOSITORY / "tests" / "helpers" / "workers" / "main.py"
TITLE = r"^── tiny · run 1 · .* ─+ step {} ──$"
DEEPSPEED = (str(Path(sys.executable).parent / "deepspeed"), "--num_gpus=2")
LAUNCHERS = pytest.mark.parametrize("launcher", [(sys.executable, *TORCHRUN), DEEPSPEED], ids=["torchrun", "deepspeed"])


@pytest.fixture
def start(home: Path) -> Iterator:
    """Starts main.py in `home` with the tiny preset, at a terminal of some size."""
    screens: list[Screen] = []

    def screen(
        size: tuple[int, int] = (80, 24), launcher: tuple[str, ...] = (), script: Path = MAIN, **variables: str
    ) -> Screen:
        variables = {**remembering(home / "cache"), **variables}
        found = Screen(script, cwd=home, size=size, launcher=launcher, variables=variables)
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
    second = Screen(MAIN, cwd=home, size=(120, 40), variables=remembering(home / "cache"))
    second.until(lambda text: re.search(r"A run trains in checkpoints/ now \(tiny, run 1, .*: Enter watches it", text))
    second.type("\r")
    second.until(trains)
    second.process.send_signal(signal.SIGINT)
    assert second.rest() == 0 and "The run goes on." in second.shown()
    first.until("tokens/s")
    assert first.process.poll() is None
    first.process.send_signal(signal.SIGINT)
    assert first.rest() == 130 and "SIGINT at step" in first.everything()


@pytest.mark.slow
@LAUNCHERS
def test_two_ranks_share_a_terminal(start, launcher: tuple[str, ...]):
    screen = start((100, 30), launcher)
    shown = screen.until(trains)
    assert shown.count("── tiny") == 1 and not screen.echoes()
    screen.type("\x03")
    screen.until("SIGINT at step", moving=True)
    screen.process.wait(60)
    assert screen.echoes()
    screen.rest()
    assert screen.everything().count("· stopped ──") == 1


@pytest.mark.slow
def test_a_rank_that_is_killed_leaves_a_terminal_that_echoes(start, home: Path):
    """Which no shell puts right: the program that it started, the launcher, ends by itself."""
    screen = start((100, 30), (sys.executable, *TORCHRUN))
    screen.until(trains)
    assert not screen.echoes()
    (rank,) = (
        process
        for process in psutil.Process(screen.process.pid).children(recursive=True)
        if any("main.py" in word for word in process.cmdline()) and process.environ().get("RANK") == "0"
    )
    rank.kill()
    screen.process.wait(120)
    assert screen.echoes()


@pytest.mark.slow
@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
def test_a_whole_run_follows_the_terminals_size_to_its_end(start, size: tuple[int, int]):
    screen = start(size, (sys.executable,), CHANGED, RUN_TOKENS="300000")
    screen.until(trains)
    for columns, rows in ((120, 40), (80, 24), (40, 10), (200, 60), size):
        screen.resize(columns, rows)
        shown = screen.until(lambda text, wide=columns: re.search(rf"^── tiny.{{{wide - 10},}}──$", text, re.MULTILINE))
        assert shown.count("── tiny") == 1 and max(map(len, shown.splitlines())) <= columns
    screen.until("Done: 300,", seconds=300, moving=True)
    assert screen.process.wait(60) == 0 and screen.echoes()
    screen.rest()
    assert screen.everything().count("· finished ──") == 1 and "100.0%" in screen.everything()


BEFORE_A_STEP = [
    *("checkpoint", "sources", "tokenizer", "model", "micro-batch"),
    *("engine", "validation", "data", "first checkpoint", "warm-up"),
]


@pytest.mark.slow
@pytest.mark.parametrize("stage", BEFORE_A_STEP)
def test_ctrl_c_ends_a_start_at_every_stage(start, home: Path, stage: str):
    configure(home, train={"probe_batch": True})
    screen = start((80, 24), (sys.executable,), CHANGED, HELD_STAGE=stage)
    screen.until(lambda text: re.search(rf"^\S {re.escape(STAGES[stage])}  \d+ s", text, re.MULTILINE), moving=True)
    assert not screen.echoes()
    screen.type("\x03")
    screen.until("stopped: SIGINT before the first step; there was nothing to save.", moving=True)
    assert screen.process.wait(60) == 130 and screen.echoes()
    screen.rest()
    assert "^C" not in screen.everything() and "Traceback" not in screen.everything()


@pytest.mark.slow
def test_ctrl_c_during_an_evaluation_saves_without_its_end(start, home: Path):
    configure(
        home,
        model={"hidden_size": 512, "num_layers": 4, "num_heads": 8, "seq_length": 128},
        train={"per_gpu_batch_size": 1, "eval_tokens": 20_000, "eval_interval_tokens": 256},
    )
    screen = start((80, 24), (sys.executable,))
    screen.until(lambda text: re.search(rf"  \S {STAGES['evaluation']}  \d+ s", text), moving=True)
    screen.type("\x03")
    screen.until("stopped: SIGINT at step 1;", moving=True)
    assert screen.process.wait(60) == 130 and screen.echoes()
    screen.rest()
    everything = screen.everything()
    assert everything.count("· stopped ──") == 1 and "^C" not in everything and "Traceback" not in everything
    assert saved_steps(home) == 1 and not [
        event for event in read(home / "checkpoints") if event["event"] == "evaluation"
    ]


@pytest.mark.slow
def test_ctrl_c_ends_the_program_while_it_imports(start):
    screen = start((80, 24), (sys.executable,))
    screen.until("Loading PyTorch and DeepSpeed", moving=True)
    screen.type("\x03")
    assert screen.process.wait(60) == 130 and screen.echoes()
    screen.rest()
    assert "there was nothing to save." in " ".join(screen.everything().split())
    assert "Traceback" not in screen.everything()


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}, {"CI": "true"}], ids=str)
def test_a_run_on_other_terminals(start, variables: dict[str, str]):
    screen = start((100, 30), **variables)
    if "NO_COLOR" in variables:
        screen.until(trains)
        assert {cell.fg for line in screen.cells() for cell in line} == {"default"}
    else:
        screen.until(lambda text: re.search(r"  step \d+  ", text), moving=True)
        assert "── tiny" not in screen.everything()
    screen.process.send_signal(signal.SIGTERM)
    assert screen.rest() == 143
    assert "SIGTERM at step" in " ".join(screen.everything().split())
