"""model/snapshot/container.py: every kind of damage is noticed, and failed writes leave nothing."""

import random
from dataclasses import replace

import pytest
import torch

from model.snapshot import Snapshot, SnapshotError, read, write
from tests.helpers.processes import run_program


def test_weights_are_written_as_fp32_and_views_alone(tmp_path, snapshot):
    large = torch.randn(1000, 1000)
    weights = {"view": large[0], "half": torch.ones(4, dtype=torch.bfloat16), "steps": torch.tensor(3)}
    write(tmp_path / "x.pth", replace(snapshot, model=weights))
    assert (tmp_path / "x.pth").stat().st_size < 200_000
    read_back = read(tmp_path / "x.pth").model
    assert torch.equal(read_back["view"], large[0])
    assert read_back["half"].dtype == torch.float32 and read_back["steps"].dtype == torch.int64


def test_sixty_flipped_bits_are_all_noticed(tmp_path, snapshot, refused):
    path = tmp_path / "lm.pth"
    write(path, replace(snapshot, model={"large": torch.randn(400, 1000)}))
    whole = path.read_bytes()
    generator = random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        assert "damaged" in refused(path) or "cut short" in refused(path) or "not a checkpoint" in refused(path)


def test_a_flip_anywhere_is_noticed_or_harmless(tmp_path, snapshot):
    """A zip holds padding, dates and names twice: a flip there changes nothing that is read."""
    path = tmp_path / "lm.pth"
    small = Snapshot({"weight": torch.arange(8.0)}, {"vocab_size": 3}, "{}", {}, {"step": 1})
    write(path, small)
    whole = path.read_bytes()
    noticed = 0
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            contents = read(path)
        except SnapshotError:
            noticed += 1
        else:
            assert torch.equal(contents.model["weight"], small.model["weight"])
            assert replace(contents, model={}) == replace(small, model={})
    assert noticed > 100


@pytest.mark.parametrize("fraction", [0, 0.25, 0.5, 1])
def test_truncated_files_are_refused(path, fraction, refused):
    whole = path.read_bytes()
    for length in {int(len(whole) * fraction), 1} if fraction == 0 else {int(len(whole) * fraction) - (fraction == 1)}:
        path.write_bytes(whole[:length])
        assert "cut short" in refused(path)
        refused(path, verify=False)


def test_a_write_that_the_system_stops_leaves_nothing(tmp_path):
    """A limit on file size acts as a full disk does: the system stops the write half-way."""
    code = """
import resource, sys, torch
from model.snapshot import Snapshot, SnapshotError, write
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write(sys.argv[1], Snapshot({"large": torch.zeros(200, 1000)}, {}, "{}"))
except SnapshotError as error:
    print(error)
"""
    _, output = run_program(code, str(tmp_path / "lm.pth"))
    assert output.strip() == (
        f"{tmp_path / 'lm.pth'}: the checkpoint could not be written (File too large); "
        "check the disk's free space and permissions."
    )
    assert list(tmp_path.iterdir()) == []


def test_too_little_free_space_is_noticed_before_writing(tmp_path, snapshot):
    huge = torch.zeros(1).expand(2**45)  # 128 TiB that take no memory
    with pytest.raises(SnapshotError, match=r"MB are needed and only .* MB are free; make room"):
        write(tmp_path / "lm.pth", replace(snapshot, model={"huge": huge}))
    with pytest.raises(SnapshotError, match="No such file or directory"):
        write(tmp_path / "nowhere" / "lm.pth", snapshot)
