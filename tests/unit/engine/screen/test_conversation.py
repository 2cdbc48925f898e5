"""engine/screen/conversation.py in a process of its own: at a real terminal, and through a pipe."""

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model import TransformerLM
from model.snapshot import write
from sources.rows.tokenizer import train_bpe
from tests.helpers import checkpoints
from tests.helpers.text import REPOSITORY
from tests.helpers.training import environment

CODE = "import sys; from pathlib import Path; from engine.screen.conversation import Conversation as C; "
COMMAND = [sys.executable, "-c", CODE + "C(Path(sys.argv[1])).run()"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two generations of an untrained model."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tokenizer = train_bpe(iter(["the quick brown fox jumps over the lazy dog. " * 50]), 300)
    torch.manual_seed(0)
    weights = TransformerLM(checkpoints.SHAPE, 300).state_dict()
    config = {**checkpoints.SHAPE.model_dump(), "vocab_size": 300, "eos_token_id": tokenizer.eos_id}
    snapshot = replace(checkpoints.snapshot(10), model=weights, config=config, tokenizer=tokenizer.to_json())
    write(folder / "lm_current.pth", snapshot)
    shutil.copy(folder / "lm_current.pth", folder / "lm_prev.pth")
    (folder / "other.pth").write_text("no snapshot")
    return folder


def piped(folder: Path, lines: str) -> tuple[int, str]:
    command, streams = [*COMMAND, str(folder)], {"capture_output": True, "text": True, "timeout": 120}
    finished = subprocess.run(command, cwd=REPOSITORY, env=environment(), input=lines, **streams)
    assert not finished.stderr, finished.stderr
    return finished.returncode, finished.stdout


def select_for(terminal: int) -> bool:
    """Whether there is something to read within half a second; for descriptors of any number."""
    poll = select.poll()
    poll.register(terminal, select.POLLIN)
    return bool(poll.poll(500))


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
        "max_new_tokens 7, temperature 0, top_p 0.9, top_k None, min_p None",
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


def test_ctrl_c_ends_an_answer_and_not_the_program(folder):
    terminal, inner = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, str(folder)], cwd=REPOSITORY, env=environment(TERM="xterm"), stdin=inner, stdout=inner, stderr=inner
    )
    os.close(inner)

    def until(text: str) -> str:
        seen, deadline = "", time.monotonic() + 90
        while text not in seen and time.monotonic() < deadline:
            if select_for(terminal):
                seen += os.read(terminal, 65536).decode(errors="replace")
        assert text in seen, seen[-2000:]
        return seen

    def type_line(line: str, expected: str) -> str:
        os.write(terminal, line.encode() + b"\n")
        return until(expected)

    until("> ")
    for setting in ("temperature 0", "no_repeat_ngram 0", "max_new_tokens 100000000"):
        type_line(f"/{setting}", "now.")
    os.write(terminal, b"the quick\n")
    until("the quick")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in until("(stopped)")
    process.send_signal(signal.SIGINT)  # while it waits for a prompt
    until("(an empty line ends)")
    type_line("/max_new_tokens 5", "now.")
    os.write(terminal, b"\x1b[A")  # the arrow up brings the last line back
    until("/max_new_tokens 5")
    os.write(terminal, b"\x15the\n")
    until("(5 tokens, ")
    os.write(terminal, b"\n")
    assert process.wait(timeout=30) == 0
    os.close(terminal)
