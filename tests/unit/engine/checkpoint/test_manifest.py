import errno
import json
from pathlib import Path

import pytest
import torch

from engine.checkpoint import manifest
from engine.checkpoint.folder import CheckpointFolder
from engine.errors import SaveError
from storage import digest
from tests.helpers.checkpoints import save, tokens, tokens_of


@pytest.mark.parametrize("contents", [None, b"", b"{}", b"[]", b"\x00" * 500])
def test_without_a_manifest_files_speak_for_themselves(folder: CheckpointFolder, contents: bytes | None):
    for number in (10, 20):
        save(folder, number)
    path = folder.folder / "manifest.json"
    path.unlink() if contents is None else path.write_bytes(contents)
    restored = CheckpointFolder(folder.folder).newest()
    assert (tokens(restored), restored.optimizer["step"]) == (20, 20)
    assert (restored.notes == []) is (contents is None)
    again = CheckpointFolder(folder.folder)
    save(again, 30)
    assert tokens_of(again) == [30, 20, 10, 30]
    assert again.newest().notes == [] and again.newest().optimizer["step"] == 30


def test_a_manifest_with_a_flipped_bit_is_noticed(folder: CheckpointFolder):
    save(folder, 10)
    path = folder.folder / "manifest.json"
    whole = path.read_bytes()
    for position in range(0, len(whole) - 1, 7):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        restored = folder.newest()
        assert tokens(restored) == 10 and ("damaged" in restored.notes[0] or json.loads(whole) == json.loads(damaged))


def record(folder: CheckpointFolder, **changes) -> None:
    """Writes a manifest that is whole and says something else."""
    path = folder.folder / manifest.FILE_NAME
    contents = json.loads(path.read_text())
    for known in contents["generations"].values():
        known.update(changes)
    del contents["check"]
    path.write_text(json.dumps({**contents, "check": digest(contents)}))


@pytest.mark.parametrize("changes", [{"generation": "abc"}, {"generation": "000009-../../x"}, {"tokens_total": "many"}])
def test_a_manifest_of_another_program_is_not_used(folder: CheckpointFolder, changes: dict):
    save(folder, 10)
    save(folder, 20)
    record(folder, **changes)
    restored = CheckpointFolder(folder.folder).newest()
    assert tokens(restored) == 20 and restored.optimizer is not None
    assert "is damaged and was not used" in restored.notes[0]


@pytest.mark.parametrize("generation", ["../../outside", "/etc/passwd", "000001-../../..", "", 7, None, "1-a"])
def test_a_snapshot_cannot_name_a_file_elsewhere(folder: CheckpointFolder, tmp_path: Path, generation):
    save(folder, 10)
    contents = torch.load(folder.current, weights_only=True)
    contents["progress"]["generation"] = generation
    for path in folder.folder.rglob("*"):
        if path.is_file():
            path.unlink()
    torch.save({"generation": generation, "optimizer": {"step": 666}, "data": "null"}, tmp_path / "outside.pt")
    torch.save(contents, folder.current)
    restored = folder.newest()
    assert restored.optimizer is None and "weights only" in restored.notes[0]


def test_a_manifest_without_its_first_snapshot_is_empty(folder: CheckpointFolder, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, "read-only")

    with monkeypatch.context() as patch:
        patch.setattr("engine.checkpoint.folder.rotate", refuse)
        for _ in range(2):
            with pytest.raises(SaveError):
                save(folder, 10)
    assert (folder.folder / manifest.FILE_NAME).exists() and CheckpointFolder(folder.folder).newest() is None
