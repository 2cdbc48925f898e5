"""main.py as a user meets it: real processes, real pipes, a real terminal."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.checkpoint.folder import CheckpointFolder
from engine.events import read
from engine.screen.menu import answers
from tests.helpers.jobs import STEP_LINE
from tests.helpers.machines import remembering
from tests.helpers.processes import TORCHRUN, Process, group_of, start
from tests.helpers.terminal import Screen, Terminal
from tests.helpers.text import REPOSITORY
from tests.helpers.training import environment, run_main, start_main


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """Output up to the first line that matches."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if re.search(pattern, line):
            return "".join(lines)
    raise AssertionError("".join(lines))


def test_an_argument_gets_one_sentence():
    command = [sys.executable, str(REPOSITORY / "main.py"), "--steps=3"]
    finished = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert finished.returncode == 2
    sentence = "main.py takes no arguments, and '--steps=3' is one: start it without, for its menu.\n"
    assert finished.stdout == sentence


def test_help_says_what_there_is():
    command = [sys.executable, str(REPOSITORY / "main.py"), "--help"]
    finished = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0 and 8 <= finished.stdout.count("\n") <= 12
    assert all(word in finished.stdout for word in ("configs/*.json", "Enter", "torchrun", "no flags", "q quits"))


def test_unattended_default_trains_saves_on_sigterm_and_resumes(home: Path):
    process = start_main(home)
    process.stdin.close()  # end of input means the default
    begin = read_until(process, STEP_LINE)
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 143
    assert "Preset 00_tiny (the default)" in begin
    assert "saved" in rest and "the next start continues from there" in rest
    assert (home / "checkpoints" / "lm_current.pth").exists()

    process = start_main(home)
    process.stdin.close()
    begin = read_until(process, STEP_LINE)
    process.send_signal(signal.SIGINT)
    process.stdout.read()
    assert process.wait(timeout=60) == 130
    assert "resumed" in begin and "Training a byte-level BPE" not in begin

    status, output = run_main(home, "g\nThe import statement\n\n")
    assert status == 0, output
    assert "Type a prompt" in output


@pytest.mark.parametrize(
    "redirected",
    [
        "<&- >&- 2>&-",
        pytest.param("</dev/null >&-", marks=pytest.mark.slow),
        pytest.param("</dev/null >log", marks=pytest.mark.slow),
    ],
)
def test_streams_that_are_closed_do_not_end_a_run(home: Path, redirected: str):
    """A daemon without streams; a terminal that lacks the letters of a sample."""
    changes = {"PYTHONIOENCODING": "ascii"} if redirected.endswith("log") else {}
    command = f"exec {sys.executable} {REPOSITORY / 'main.py'} {redirected}"
    process = subprocess.Popen(["sh", "-c", command], cwd=home, env=environment(**changes), stderr=subprocess.PIPE)
    errors = stopped_after_an_evaluation(process, home)
    assert "Traceback" not in errors


@pytest.mark.parametrize("output", ["/dev/full", "ascii"])
def test_streams_that_take_nothing_do_not_end_a_run(home: Path, output: str):
    """A log on a full disk, a terminal that lacks the letters of a sample."""
    with open(os.devnull) as nothing, open("/dev/full" if output == "/dev/full" else home / "log", "w") as log:
        change = "import os; os.dup2(os.open('errors', os.O_WRONLY | os.O_CREAT), 2)"
        if output == "ascii":
            change += "; sys.stdout.reconfigure(encoding='ascii', errors='strict')"
        process = start(main_after(change), cwd=home, stdin=nothing.fileno(), stdout=log.fileno())
    stopped_after_an_evaluation(process, home)
    assert "Traceback" not in (home / "errors").read_text()
    if output == "ascii":
        written = (home / "log").read_bytes()
        assert b"SIGTERM at step" in written and written.isascii()


def main_after(change: str) -> str:
    """A program that is main.py, after a change to the process that it runs in."""
    path = str(REPOSITORY / "main.py")
    return f"import runpy, sys\n{change}\nsys.argv = ['main.py']\nrunpy.run_path({path!r}, run_name='__main__')"


def stopped_after_an_evaluation(process: subprocess.Popen | Process, home: Path) -> str:
    """What a run whose first evaluation is awaited, and which a signal then stops, writes to its standard error."""
    deadline = time.monotonic() + 90
    while process.poll() is None and not any(event["event"] == "evaluation" for event in read(home / "checkpoints")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert CheckpointFolder(home / "checkpoints").newest().optimizer is not None
    return (errors or b"").decode()


@pytest.mark.slow
def test_without_a_compiler_it_says_so_and_trains(home: Path):
    values = json.loads((home / "configs" / "00_tiny.json").read_text())
    for name, asked in (("00_tiny", "auto"), ("01_demanding", True)):
        values["train"]["compile"] = asked
        (home / "configs" / f"{name}.json").write_text(json.dumps(values))
    tools = home / "tools"
    tools.mkdir()
    for name in ("sh", "uname", "ldconfig"):
        if found := shutil.which(name):
            (tools / name).symlink_to(found)
    bare = {"PATH": str(tools), "CXX": "", "CC": "", "TORCHINDUCTOR_CACHE_DIR": str(home / "cache")}
    process = start_main(home, **bare)
    process.stdin.close()
    begin = read_until(process, STEP_LINE)
    process.kill()
    process.wait()
    assert "torch.compile is not available here" in begin and "training uncompiled" in begin

    status, output = run_main(home, "01\n", **bare)
    assert status == 2, output
    assert "train.compile is true but torch.compile is not available here" in output and "Traceback" not in output


@pytest.mark.parametrize(
    ("answer", "contents", "status", "sentence"),
    [
        ("nope\n", None, 2, "'nope' is no preset; there are 00_tiny."),
        ("00\n", '{"train": {"seed": }}', 2, "not valid JSON: line 1, column 20 (}}): a value must"),
        ("00\n", '{"data": {"sources": [{"type": "files", "path": "./nowhere"}]}}', 3, "nowhere"),
        ("g\n", None, 2, "lm_current.pth"),
    ],
)
def test_what_cannot_be_used_gets_a_sentence_and_a_status(home: Path, answer, contents, status, sentence):
    if contents is not None:
        (home / "configs" / "00_tiny.json").write_text(contents)
    code, output = run_main(home, answer)
    assert code == status, output
    assert sentence in output
    assert "Traceback" not in output


def test_a_checkpoint_that_is_none_stops_with_status_4(home: Path):
    (home / "checkpoints").mkdir()
    (home / "checkpoints" / "lm_current.pth").write_text("not a checkpoint")
    code, output = run_main(home)
    assert code == 4, output
    assert "can be trusted" in output and "Traceback" not in output
    assert (home / "checkpoints" / "lm_current.pth").read_text() == "not a checkpoint"


def test_an_open_pipe_that_says_nothing_means_the_default(home: Path):
    assert answers.ANSWER_SECONDS == 10.0, "as the README says; who tests it need not wait as long"
    process = start(main_after("from engine.screen.menu import answers; answers.ANSWER_SECONDS = 1.0"), cwd=home)
    since = time.monotonic()
    begin = read_until(process, "Preset 00_tiny")
    assert time.monotonic() - since >= 1.0 and "(the default)" in begin
    process.kill()
    process.wait()


def test_a_terminal_shows_the_menu_and_a_reachable_default(home: Path):
    """The first preset has no data, so the menu says so and offers another default; a bad answer is asked again."""
    values = json.loads((home / "configs" / "00_tiny.json").read_text())
    (home / "configs" / "01_reachable.json").write_text(json.dumps({**values, "name": "reachable"}))
    values["data"]["sources"] = [{"type": "files", "path": "./nowhere"}]
    (home / "configs" / "00_tiny.json").write_text(json.dumps(values))
    (home / "configs" / "02_broken.json").write_text('{"trian": {}}')
    terminal = Terminal(
        REPOSITORY / "main.py", cwd=home, variables={"COLUMNS": "200", "TERM": "dumb", **remembering(home)}
    )
    menu = terminal.read("[01_reachable]: ")
    assert "00_tiny" in menu and "not reachable" in menu and "reachable" in menu
    assert 'trian: unknown key (did you mean "train"?)' in menu
    assert "Enter takes 01_reachable instead" in menu
    assert "is no preset" in terminal.type("seven\n", "[01_reachable]: ")
    terminal.type("\n", "Run 1 of reachable")
    terminal.kill()


def test_at_a_terminal_enter_trains_ctrl_c_saves_and_enter_resumes(home: Path):
    """The folder's run is resumed, though another preset comes first."""
    values = json.loads((home / "configs" / "00_tiny.json").read_text())
    (home / "configs" / "01_mine.json").write_text(json.dumps({**values, "name": "mine"}))
    screen = Screen(REPOSITORY / "main.py", cwd=home, size=(120, 40), variables=remembering(home))
    screen.until("> 00_tiny")
    screen.type("mine\r")
    screen.until(lambda shown: any(event["event"] == "step" for event in read(home / "checkpoints")))
    screen.process.send_signal(signal.SIGINT)
    assert screen.rest() == 130
    assert "the next start continues from there" in " ".join(screen.everything().split())

    screen = Screen(REPOSITORY / "main.py", cwd=home, size=(120, 40), variables=remembering(home))
    assert re.search(r"run 1, 0%, loss \d\.\d\d: Enter resumes", screen.until("Enter resumes  d"))
    assert "> 01_mine" in screen.shown()
    screen.type("\r")
    screen.until(lambda shown: [event["event"] for event in read(home / "checkpoints")].count("run") == 2)
    screen.kill()


@pytest.mark.parametrize("keys", ["q", "00\r"])
def test_of_two_ranks_the_first_one_asks_and_the_other_waits(home: Path, keys: str):
    groups = group_of(2)
    first = Screen(REPOSITORY / "main.py", cwd=home, variables={**remembering(home), **groups[0]})
    second = start(REPOSITORY / "main.py", cwd=home, variables=groups[1])
    first.until("> 00_tiny")
    assert second.poll() is None
    first.type(keys)
    if keys != "q":
        first.until(lambda shown: any(event["event"] == "run" for event in read(home / "checkpoints")))
        first.process.send_signal(signal.SIGTERM)
    assert [first.rest(), second.wait(60)] == ([0, 0] if keys == "q" else [143, 143])


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [(sys.executable, *TORCHRUN), (str(Path(sys.executable).parent / "deepspeed"), "--num_gpus=2")],
    ids=["torchrun", "deepspeed"],
)
def test_a_launcher_shows_one_picker_and_trains_on_all_ranks(home: Path, launcher: tuple[str, ...]):
    screen = Screen(
        REPOSITORY / "main.py", cwd=home, size=(100, 30), launcher=launcher, variables=remembering(home / "cache")
    )
    shown = screen.until("q quit")
    assert shown.count("Forethought") == 1 and "> 00_tiny" in shown
    screen.type("\r")
    screen.until(lambda shown: any(event["event"] == "run" for event in read(home / "checkpoints")))
    (run,) = (event for event in read(home / "checkpoints") if event["event"] == "run")
    assert run["derived"]["world_size"] == 2
    screen.process.send_signal(signal.SIGINT)
    screen.rest()


def test_a_fault_is_said_saved_and_written_down(home: Path):
    """In the middle of a run; what was trained is saved."""
    fault = """
from engine.run import trainer
following = trainer.Trainer._next_batch
def failing(self, *arguments):
    if self.progress.step == 2:
        raise LookupError("nobody thought of this")
    return following(self, *arguments)
trainer.Trainer._next_batch = failing
"""
    process = start(main_after(fault), cwd=home)
    output, _ = process.communicate("\n", timeout=120)
    assert process.returncode == 1, output
    assert "stopped: a fault while training: LookupError: nobody thought of this." in output
    assert "Saved to checkpoints/lm_current.pth at step 2; the next start continues from there." in output
    assert CheckpointFolder(home / "checkpoints").newest().snapshot.progress["step"] == 2
    assert "Traceback" not in output and "The traceback is in checkpoints/run.log." in output
    assert "nobody thought of this" in (home / "checkpoints" / "run.log").read_text()


def test_a_finished_run_says_so_and_ends_with_status_0(home: Path):
    short = "from engine.training import train; train.__kwdefaults__['token_budget'] = 1024"
    process = start(main_after(short), cwd=home)
    output, _ = process.communicate("\n", timeout=120)
    assert process.returncode == 0, output
    assert "Done: " in output and "to generate with it, start main.py again" in output and "stopped" not in output
