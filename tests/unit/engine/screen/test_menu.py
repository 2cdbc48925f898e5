from pathlib import Path

import pytest

from engine.config import CONFIGS, preset_files
from engine.errors import PresetError
from engine.screen import menu

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
    assert menu._match(answer, FILES).stem == stem


def test_an_answer_that_is_neither_names_the_choices():
    for answer in ("9", "²"):
        with pytest.raises(PresetError, match=f"'{answer}' is no preset; there are 00_best_general, 01_best_qa"):
            menu._match(answer, FILES)


def test_a_preset_needs_no_number_and_a_broken_one_hinders_none(tmp_path: Path):
    (tmp_path / "00_broken.json").write_text("{")
    (tmp_path / "my model.json").write_text("{}")
    files = preset_files(tmp_path)
    assert menu._match("my model", files).name == "my model.json"
    assert menu._match("00", files).name == "00_broken.json"


def test_an_answer_that_fits_several_presets_is_refused(tmp_path: Path):
    (tmp_path / "00_mine.json").write_text('{"name": "general"}')
    (tmp_path / "00_theirs.json").write_text('{"name": "general"}')
    files = preset_files(tmp_path)
    for answer in ("00", "0", "general"):
        with pytest.raises(PresetError, match=f"'{answer}' fits several presets, 00_mine, 00_theirs; give the file"):
            menu._match(answer, files)
    assert menu._match("00_theirs", files).stem == "00_theirs"
