from pathlib import Path

import pytest

from engine.config import load_preset
from engine.errors import PresetError


def test_malformed_files_say_where(tmp_path: Path):
    path = tmp_path / "broken.json"
    path.write_text('{\n "name": "x",\n "train": {"seed": }\n}')
    with pytest.raises(PresetError, match=r"broken.json: not valid JSON: .*: line 3 column 20"):
        load_preset(path)
    path.write_text("[]")
    with pytest.raises(PresetError, match="a preset is a JSON object"):
        load_preset(path)
    path.write_text("[" * 100_000)
    with pytest.raises(PresetError, match="nested too deeply"):
        load_preset(path)
    path.write_text('{"name": "x", "name": "y"}')
    with pytest.raises(PresetError, match="'name' appears twice"):
        load_preset(path)
    with pytest.raises(PresetError, match=r'no such preset \(did you mean "broken.json"\?\)'):
        load_preset(tmp_path / "brokn.json")


def test_a_file_without_a_name_takes_its_own(tmp_path: Path):
    (tmp_path / "mine.json").write_text("{}")
    assert load_preset(tmp_path / "mine.json").name == "mine"
