"""engine/screen/menu/answers.py: which preset an answer means."""

import io
from dataclasses import replace
from pathlib import Path

import pytest

from engine.checkpoint.folder import CheckpointFolder
from engine.config import CONFIGS, load_preset, preset_files
from engine.errors import PresetError
from engine.screen import menu
from engine.screen.menu.answers import match, values
from tests.helpers import checkpoints

FILES = preset_files(CONFIGS)


@pytest.mark.parametrize(
    ("answer", "stem"),
    [
        ("02", "02_offline_python"),
        ("2", "02_offline_python"),
        ("0", "00_best_general"),
        ("offline_python", "02_offline_python"),
        ("03_reference", "03_reference"),
        ("01_best_qa.json", "01_best_qa"),
    ],
)
def test_an_answer_is_a_number_or_a_name(answer: str, stem: str):
    assert match(answer, FILES).stem == stem


def test_an_answer_that_is_neither_names_the_choices():
    for answer in ("9", "²"):
        with pytest.raises(PresetError, match=f"'{answer}' is no preset; there are 00_best_general, 01_best_qa"):
            match(answer, FILES)


def test_a_preset_needs_no_number_and_a_broken_one_hinders_none(tmp_path: Path):
    (tmp_path / "00_broken.json").write_text("{")
    (tmp_path / "my model.json").write_text("{}")
    files = preset_files(tmp_path)
    assert match("my model", files).name == "my model.json"
    assert match("00", files).name == "00_broken.json"


def test_an_answer_that_fits_several_presets_is_refused(tmp_path: Path):
    (tmp_path / "00_mine.json").write_text('{"name": "general"}')
    (tmp_path / "00_theirs.json").write_text('{"name": "general"}')
    files = preset_files(tmp_path)
    for answer in ("00", "0", "general"):
        with pytest.raises(PresetError, match=f"'{answer}' fits several presets, 00_mine, 00_theirs; give the file"):
            match(answer, files)
    assert match("00_theirs", files).stem == "00_theirs"


def test_the_values_that_travel_are_the_whole_preset():
    assert values(FILES[0]) == load_preset(FILES[0]).model_dump(mode="json", by_alias=True)


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A checkpoint folder that was trained with preset `reference`."""
    snapshot = replace(checkpoints.snapshot(10), preset={"name": "reference"})
    CheckpointFolder(tmp_path).save(snapshot, checkpoints.optimizer(10), {})
    return tmp_path


def test_started_again_the_preset_is_the_one_trained_last(trained: Path, monkeypatch):
    """By torchrun --max_restarts, whose ranks find an input that was read."""
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert menu.choose(10**8, trained)["name"] == "best_general"
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    assert menu.choose(10**8, trained)["name"] == "reference"
    assert menu.choose(10**8, trained / "empty")["name"] == "best_general"


def test_started_again_nobody_is_asked(trained: Path, monkeypatch):
    """Not even at a terminal, where the first start asked."""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    monkeypatch.setattr(menu, "moves_the_cursor", lambda: False)
    monkeypatch.setattr(menu, "ask_plainly", lambda shown: "q")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert menu.choose(10**8, trained) == "q"
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert menu.choose(10**8, trained)["name"] == "reference"
