import stat
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from engine.checkpoints import CURRENT, MIRROR, PREV, PREV2, CheckpointFolder
from engine.errors import CheckpointError, SaveError
from model import ModelConfig, TransformerLM
from model.snapshot import Snapshot
from tests.conftest import REPOSITORY
from tests.engine.conftest import environment

SHAPE = ModelConfig(hidden_size=16, num_layers=1, num_heads=2, seq_length=16)
TOKENIZER = "{}"
Usage = namedtuple("Usage", "total used free")


def snapshot(tokens: int) -> Snapshot:
    torch.manual_seed(tokens)
    return Snapshot(
        model=TransformerLM(SHAPE, 64).state_dict(),
        config={**SHAPE.model_dump(), "vocab_size": 64, "eos_token_id": 0},
        tokenizer=TOKENIZER,
        preset={},
        progress={"run": 1, "step": tokens // 10, "tokens_in_run": tokens, "tokens_total": tokens, "evaluation": None},
    )


def optimizer(tokens: int) -> dict:
    return {"step": tokens, "moments": {"tokens.weight": {"exp_avg": torch.full((2, 2), float(tokens))}}}


def save(folder: CheckpointFolder, tokens: int) -> None:
    folder.save(snapshot(tokens), optimizer(tokens), {"loader": {"row": tokens}})


def flip(path: Path) -> None:
    """Turns one bit of a file, in place: its hard links hold the same."""
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 1
    path.write_bytes(contents)


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "checkpoints")


def tokens_of(folder: CheckpointFolder) -> list[int]:
    names = [name for name in (CURRENT, PREV, PREV2, MIRROR) if (folder.folder / name).exists()]
    return [torch.load(folder.folder / n, weights_only=True)["progress"]["tokens_total"] for n in names]


def test_an_empty_folder_has_nothing_to_resume(folder: CheckpointFolder):
    assert folder.newest() is None


def test_three_generations_roll_and_the_mirror_follows(folder: CheckpointFolder):
    expected = {1: [10, 10], 2: [20, 10, 20], 3: [30, 20, 10, 30], 4: [40, 30, 20, 40], 5: [50, 40, 30, 50]}
    for number, tokens in expected.items():
        save(folder, 10 * number)
        assert tokens_of(folder) == tokens
        assert len(list((folder.folder / "state").glob("*.pt"))) == min(number, 3)
    assert not list(folder.folder.rglob(".writing-*"))


def test_what_was_saved_comes_back_with_its_own_state(folder: CheckpointFolder):
    save(folder, 10)
    save(folder, 20)
    restored = folder.newest()
    assert restored.path.name == CURRENT
    assert restored.snapshot.progress["tokens_total"] == 20
    assert restored.optimizer["moments"]["tokens.weight"]["exp_avg"][0, 0] == 20
    assert restored.data == {"loader": {"row": 20}}
    assert restored.notes == []
    assert all(torch.equal(t, restored.snapshot.model[name]) for name, t in snapshot(20).model.items())


def test_a_damaged_current_falls_back_to_the_generation_before_with_its_state(folder: CheckpointFolder):
    save(folder, 10)
    save(folder, 20)
    flip(folder.current)
    restored = folder.newest()
    assert restored.snapshot.progress["tokens_total"] == 10
    assert restored.optimizer["step"] == 10
    assert CURRENT in restored.notes[0]


def test_files_of_which_none_verifies_stop_the_run_and_stay(folder: CheckpointFolder):
    folder.folder.mkdir()
    folder.current.write_text("this is no checkpoint")
    with pytest.raises(CheckpointError, match="can be trusted; nothing was changed") as caught:
        folder.newest()
    assert caught.value.status == 4
    assert folder.current.read_text() == "this is no checkpoint"


def test_a_bare_state_dict_is_a_beginning(folder: CheckpointFolder):
    folder.folder.mkdir()
    torch.save(TransformerLM(SHAPE, 64).state_dict(), folder.current)
    restored = folder.newest()
    assert restored.snapshot.config is None
    assert restored.optimizer is None and restored.data is None
    assert "weights only" in restored.notes[0]


def test_missing_state_keeps_the_weights_and_says_so(folder: CheckpointFolder):
    save(folder, 10)
    for path in (folder.folder / "state").glob("*.pt"):
        path.unlink()
    restored = folder.newest()
    assert restored.snapshot.progress["tokens_total"] == 10
    assert restored.optimizer is None
    assert "is missing" in restored.notes[0]


def test_the_archive_takes_the_whole_lineage(folder: CheckpointFolder):
    save(folder, 10)
    (folder.folder / "metrics.jsonl").write_text("{}\n")
    target = folder.archive()
    assert folder.newest() is None
    assert {path.name for path in folder.folder.iterdir()} == {"archive"}
    assert {CURRENT, MIRROR, "manifest.json", "metrics.jsonl", "state"} <= {path.name for path in target.iterdir()}
    assert CheckpointFolder(target).newest().snapshot.progress["tokens_total"] == 10


def test_the_state_folder_is_private(folder: CheckpointFolder):
    save(folder, 10)
    assert stat.S_IMODE((folder.folder / "state").stat().st_mode) == 0o700


FULL_DISK = """
import resource, sys
from tests.engine.test_checkpoints import CheckpointFolder, SaveError, save
folder = CheckpointFolder(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    save(folder, 30)
except SaveError as error:
    print("refused:", error)
"""


@pytest.mark.parametrize("limit", [0, 5_000, 20_000])
def test_a_write_that_fails_leaves_the_old_generations_as_they_were(folder: CheckpointFolder, limit: int):
    save(folder, 10)
    save(folder, 20)
    names = (CURRENT, PREV, MIRROR)
    before = {name: (folder.folder / name).read_bytes() for name in names}
    # Python ignores SIGXFSZ, so a file over the limit fails with an error, as on a full disk.
    finished = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(folder.folder), str(limit)],
        env=environment(),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.stdout.startswith("refused:"), finished.stdout + finished.stderr
    assert {name: (folder.folder / name).read_bytes() for name in names} == before
    save(folder, 30)
    assert tokens_of(folder) == [30, 20, 10, 30]
    assert not list(folder.folder.rglob(".writing-*"))


def test_too_little_space_is_told_in_numbers(folder: CheckpointFolder, monkeypatch: pytest.MonkeyPatch):
    save(folder, 10)
    # The one thing that cannot be had for real here is a disk that is nearly full.
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(1_000_000, 999_000, 1_000))
    with pytest.raises(SaveError, match=r"a snapshot needs 1 MiB and the disk has 0 MiB left; free 1 MiB"):
        save(folder, 20)
    assert tokens_of(folder) == [10, 10]
