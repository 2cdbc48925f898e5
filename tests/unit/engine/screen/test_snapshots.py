from pathlib import Path

import pytest

from engine.errors import PresetError
from engine.screen import snapshots
from tests.helpers import checkpoints


def test_the_newest_checkpoint_comes_first_and_other_files_last(tmp_path: Path):
    for name in ("a.pth", "lm_prev.pth", "lm_current.pth", "manifest.json"):
        (tmp_path / name).touch()
    assert snapshots.names(tmp_path) == ["lm_current.pth", "lm_prev.pth", "a.pth"]
    assert snapshots.names(tmp_path / "nowhere") == []


def test_a_snapshot_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(PresetError, match=r"lm_current\.pth does not exist yet: train a preset first\."):
        snapshots.require(tmp_path)
    (tmp_path / "lm_prev.pth").touch()
    assert snapshots.require(tmp_path, "lm_prev.pth") == tmp_path / "lm_prev.pth"
    for name in ("lm_current.pth", "../lm_prev.pth", ""):
        with pytest.raises(PresetError, match=rf"holds no {name}; there are lm_prev\.pth\."):
            snapshots.require(tmp_path, name)


def test_a_model_is_opened_with_its_size_and_refused_in_a_sentence(tmp_path: Path, capsys):
    checkpoints.write_model(tmp_path / "lm.pth", {"name": "tiny"})
    lm = snapshots.open_model(tmp_path / "lm.pth", "cpu")
    assert lm.preset == {"name": "tiny"} and "lm.pth: 8" in capsys.readouterr().out
    (tmp_path / "lm.pth").write_text("nothing")
    with pytest.raises(PresetError, match="not a checkpoint"):
        snapshots.open_model(tmp_path / "lm.pth")
