"""The menu's `e`: through a pipe, at a terminal, and with two ranks. Exports are read back."""

import io
import json
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import gguf
import pytest
import torch

from engine.config import parse_preset
from engine.errors import Interrupted, PresetError
from engine.screen.exporting import export
from model import from_transformers, load
from model.export import target
from tests.helpers import checkpoints
from tests.helpers.machines import remembering
from tests.helpers.processes import Variables, start_ranks
from tests.helpers.terminal import Terminal
from tests.helpers.text import REPOSITORY
from tests.helpers.training import run_main

PRESET = {"name": "tiny", "data": {"sources": ["wikipedia", {"type": "python_packages"}]}}


@pytest.fixture
def trained(home: Path, snapshot_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to start main.py in, whose model is there; the working directory."""
    (home / "checkpoints").mkdir()
    shutil.copy(snapshot_file, home / "checkpoints" / "lm_current.pth")
    monkeypatch.chdir(home)
    return home


@pytest.fixture(scope="module")
def snapshot_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("snapshot") / "lm.pth"
    checkpoints.write_model(path, parse_preset(PRESET).model_dump(mode="json", by_alias=True))
    return path


def piped(monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
    """Export with these answers on standard input, which then ends."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{answer}\n" for answer in answers)))
    export(Path("checkpoints"))


def left(home: Path) -> set[str]:
    return {path.name for path in home.iterdir()} - {"configs", "checkpoints"}


def test_one_letter_on_a_pipe_exports_with_all_defaults(trained: Path):
    status, output = run_main(trained, "e\n")
    assert status == 0, output
    assert "exports/tiny: exported as GPT2LMHeadModel." in output and "[" not in output
    theirs, ours = (lm.model.state_dict() for lm in (from_transformers("exports/tiny"), load(checkpoint(trained))))
    vocab = 300  # rows beyond are padding
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name][:vocab], ours[name][:vocab]) for name in ours)
    status, output = run_main(trained, "e\n")
    assert status == 0 and "exports/tiny-2: exported" in output, "what exists is never overwritten"


def checkpoint(home: Path) -> Path:
    return home / "checkpoints" / "lm_current.pth"


def test_answers_on_a_pipe_are_lines(trained: Path, monkeypatch, capsys):
    shutil.copy(checkpoint(trained), trained / "checkpoints" / "lm_prev.pth")
    piped(monkeypatch, "lm_prev.pth", "model.gguf", "Q8_0")
    said = capsys.readouterr().out
    assert "lm_prev.pth: " in said and "model.gguf: exported as gpt2." in said
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader("model.gguf").tensors}
    assert "F16" in kinds and left(trained) == {"model.gguf"}, "rows of 16 are no whole blocks of q8_0"


def test_a_home_folder_and_a_number_format_in_a_folder(trained: Path, monkeypatch):
    monkeypatch.setenv("HOME", str(trained))
    piped(monkeypatch, "~/half", "bfloat16")
    assert json.loads((trained / "half" / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_model_card_has_the_licences_that_are_known(trained: Path, monkeypatch):
    piped(monkeypatch)
    rows = [line for line in Path("exports/tiny/README.md").read_text().splitlines() if line.startswith("| ")]
    assert any("wikipedia" in row and "CC BY-SA 3.0, GFDL" in row for row in rows)
    assert any("python_packages" in row and "not stated here" in row for row in rows)


@pytest.mark.parametrize(
    ("preset", "name"),
    [({"name": "../a b.gguf"}, "a-b-gguf"), ({}, "model"), ({"name": "..", "data": {"sources": ["x"]}}, "model")],
    ids=str,
)
def test_the_default_folder_lies_in_exports_whatever_the_name(tmp_path: Path, monkeypatch, preset, name):
    (tmp_path / "checkpoints").mkdir()
    checkpoints.write_model(checkpoint(tmp_path), preset)
    monkeypatch.chdir(tmp_path)
    piped(monkeypatch)
    assert [path.name for path in Path("exports").iterdir()] == [name]


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        (["lm_pref.pth"], "holds no lm_pref.pth; there are lm_current.pth, other.pth."),
        (["other.pth"], "other.pth: not a checkpoint"),
        (["", "checkpoints"], "checkpoints is a folder that holds something and is never overwritten; give another"),
        (["", "nowhere/model"], "nowhere is no folder; make it or give another name."),
        (["", "", "q8_0"], "dtype 'q8_0' is none of float32, bfloat16, float16, which a folder can have."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_exported_is_a_sentence(trained: Path, monkeypatch, answers, sentence):
    (trained / "checkpoints" / "other.pth").write_text("no snapshot")
    with pytest.raises(PresetError) as raised:
        piped(monkeypatch, *answers)
    assert sentence in str(raised.value) and raised.value.status == 2
    assert not left(trained)


def test_without_a_model_the_status_is_2(home: Path):
    status, output = run_main(home, "e\n")
    assert status == 2, output
    assert "checkpoints/lm_current.pth does not exist yet: train a preset first." in output
    assert "Traceback" not in output


@pytest.fixture
def dumb(tmp_path_factory: pytest.TempPathFactory) -> Variables:
    """A terminal that only prints."""
    return {"COLUMNS": "200", "TERM": "dumb", **remembering(tmp_path_factory.mktemp("cache"))}


def test_a_terminal_asks_again_until_an_answer_can_be_used(trained: Path, dumb: Variables):
    shutil.copy(checkpoint(trained), trained / "checkpoints" / "lm_prev.pth")
    (trained / "mine").write_text("mine")
    terminal = Terminal(
        REPOSITORY / "main.py",
        cwd=trained,
        variables=dumb,
    )
    terminal.read(", g to generate, e to export [00_tiny]: ")
    terminal.type("e\n", "Snapshot, one of lm_current.pth, lm_prev.pth [lm_current.pth]: ")
    assert "holds no lm_last.pth" in terminal.type("lm_last.pth\n", "[lm_current.pth]: ")
    shown = terminal.type("lm_prev.pth\n", "[exports/tiny]: ")
    assert "lm_prev.pth: " in shown and "a folder for transformers, or to a name that ends in .gguf" in shown
    terminal.type("mine\n", "Number format, one of float32, bfloat16, float16 [float32]: ")
    assert "mine exists already" in terminal.type("\n", "[exports/tiny]: ")
    terminal.type("model.gguf\n", "one of float32, float16, bfloat16, q8_0 [float32]: ")
    assert "dtype 'int3' is none of" in terminal.type("int3\n", "[exports/tiny]: ")
    terminal.type("\n", "[float32]: ")
    terminal.type("\n", "exports/tiny: exported as GPT2LMHeadModel.")
    assert terminal.end() == 0
    assert left(trained) == {"mine", "exports"} and (trained / "mine").read_text() == "mine"


@pytest.mark.parametrize(
    ("key", "sentence", "status"), [("\x04", "Nothing was exported.", 0), ("", "The export was stopped", 130)]
)
def test_ctrl_d_and_ctrl_c_leave(trained: Path, dumb: Variables, key: str, sentence: str, status: int):
    terminal = Terminal(
        REPOSITORY / "main.py",
        cwd=trained,
        variables=dumb,
    )
    terminal.read("[00_tiny]: ")
    terminal.type("e\n", "[exports/tiny]: ")
    if not key:
        time.sleep(0.3)  # a signal that comes between the question and the reading waits for a line
        terminal.process.send_signal(signal.SIGINT)
    assert "Traceback" not in terminal.type(key, sentence)
    assert terminal.end() == status
    assert not left(trained)


def test_ctrl_c_while_it_is_written_leaves_nothing(trained: Path, monkeypatch):
    def interrupted(path: Path) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(target, "_sync", interrupted)
    with pytest.raises(Interrupted, match="nothing half written is left") as raised:
        piped(monkeypatch)
    assert raised.value.status == 130 and not left(trained)


def test_of_two_ranks_the_first_one_exports(trained: Path):
    first, second = start_ranks(REPOSITORY / "main.py", cwd=trained, processes=2)
    outputs = [process.communicate("e\n", timeout=120)[0] for process in (first, second)]
    assert [first.wait(), second.wait()] == [0, 0], outputs
    assert "exports/tiny: exported as" in outputs[0]
    # On busy cores the first may have ended, and the store with it, while the second leaves: torch warns of that.
    of_torch = r"\[rank1\]:\[W|Exception raised from|frame #|$"
    assert not [line for line in outputs[1].splitlines() if not re.match(of_torch, line)]
    assert [path.name for path in (trained / "exports").iterdir()] == ["tiny"]
