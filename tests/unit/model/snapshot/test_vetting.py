"""model/snapshot/vetting.py: nothing in a hostile file runs, and no file makes this process larger than the file."""

import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from model.snapshot import Snapshot, SnapshotError, read, write
from tests.helpers.text import REPOSITORY

READ = """
import resource, sys
import torch
from model.snapshot import SnapshotError, read
peak = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (peak + 2**28, peak + 2**28))
for path in sys.argv[1:]:
    for verify in (True, False):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            read(path, verify=verify)
            print("read")
        except SnapshotError as error:
            print(str(error).removeprefix(path))
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 100_000, (path, grown)  # kB
"""


class Runs:
    """Unpickling this runs `function`."""

    def __init__(self, function: Callable, *arguments: object):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def contents(**changes) -> dict:
    plain = {"format": 1, "model": {"w": torch.ones(2)}, "config": {}, "tokenizer": "{}", "preset": {}, "progress": {}}
    return plain | changes


def rewritten(path: Path, change: Callable[[zipfile.ZipInfo, bytes], bytes], **options) -> Path:
    """`path` as another zip, each member changed by `change`."""
    with zipfile.ZipFile(path) as archive:
        members = [(member, archive.read(member)) for member in archive.infolist()]
    with zipfile.ZipFile(path, "w", **options) as archive:
        for member, data in members:
            archive.writestr(member.filename, change(member, data))
    return path


def sentences(*paths: Path) -> list[str]:
    """What a process with little memory says to each file, verified and unverified."""
    finished = subprocess.run(
        [sys.executable, "-c", READ, *map(str, paths)], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    lines = finished.stdout.splitlines()
    assert len(lines) == 2 * len(paths)  # one sentence each
    return lines


def test_no_payload_runs_wherever_it_is(tmp_path: Path):
    proof = tmp_path / "proof"
    payloads = {
        "system": Runs(os.system, f"echo ran > '{proof}'"),
        "open": Runs(open, str(proof), "w"),
        "exec": Runs(exec, f"open({str(proof)!r}, 'w')"),
        "nested": Runs(getattr, Runs(os.system, f"echo ran > '{proof}'"), "real"),
    }
    places = {
        "all": lambda payload: payload,
        "model": lambda payload: contents(model={"w": payload}),
        "config": lambda payload: contents(config={"vocab_size": payload}),
        "preset": lambda payload: contents(preset={"data": {"sources": [{"deep": [payload]}]}}),
        "progress": lambda payload: contents(progress={"step": payload}),
    }
    for kind, payload in payloads.items():
        for place, around in places.items():
            for protocol in (2, 4):
                path = tmp_path / f"{kind}-{place}-{protocol}.pth"
                torch.save(around(payload), path, pickle_protocol=protocol)
                for verify in (True, False):
                    with pytest.raises(
                        SnapshotError, match=r"asks for code to be run \(.*\) and was refused; use [^\n]*"
                    ):
                        read(path, verify=verify)
            torch.save(around(payload), path, _use_new_zipfile_serialization=False)
            with pytest.raises(SnapshotError, match="not a checkpoint"):
                read(path)
    assert not proof.exists()
    torch.load(tmp_path / "system-all-2.pth", weights_only=False)
    assert proof.exists()  # the payloads were live ones


def test_a_pickle_with_a_zip_after_it_is_refused(tmp_path: Path):
    write(tmp_path / "whole.pth", Snapshot({"w": torch.ones(2)}, {}, "{}"))
    path = tmp_path / "both.pth"
    whole = (tmp_path / "whole.pth").read_bytes()
    path.write_bytes(pickle.dumps(Runs(os.system, "true"), protocol=2) + whole)
    with pytest.raises(SnapshotError, match="not a checkpoint"):
        read(path)
    path.write_bytes(whole + whole)
    with pytest.raises(SnapshotError, match="overlapping members"):
        read(path)


def test_what_would_grow_in_memory_is_refused(tmp_path: Path):
    giant = 2**33
    bombs = {}

    def make(name: str, value: object) -> Path:
        bombs[name] = tmp_path / f"{name}.pth"
        torch.save(value, bombs[name])
        return bombs[name]

    rewritten(make("deflated", contents(tokenizer="x" * 50_000_000)), lambda _, data: data, compression=8)
    make("expanded", contents(model={"w": torch.ones(1).expand(giant)}))
    make("bytearray", contents(progress={"step": Runs(bytearray, giant)}))
    make("sparse", contents(model={"w": torch.sparse_coo_tensor([[0]], [1.0], (giant,), check_invariants=False)}))
    laughs: list = ["ha"]
    for _ in range(64):
        laughs = [laughs, laughs]
    make("laughs", contents(preset={"data": laughs}))
    endless: list = []
    endless.append(endless)
    make("endless", contents(progress={"step": endless}))
    # A storage of 2 GiB by its pickle's word, of eight bytes by the zip's
    declared = make("declared", contents())
    rewritten(declared, lambda _, data: data.replace(b"K\x02t", b"J" + struct.pack("<i", 2**29) + b"t"))
    # One member that says it is as large as the disk, and two that are the same bytes
    large = make("large", contents())
    data = bytearray(large.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    large.write_bytes(data)
    twice = make("twice", contents())
    data = bytearray(twice.read_bytes())
    entries = [at for at in range(len(data)) if data[at : at + 4] == b"PK\x01\x02"]
    data[entries[1] + 42 : entries[1] + 46] = data[entries[0] + 42 : entries[0] + 46]
    twice.write_bytes(data)

    assert sum(path.stat().st_size for path in bombs.values()) < 10**6
    said = dict(zip([(name, v) for name in bombs for v in (True, False)], sentences(*bombs.values()), strict=True))
    for kind, expected in {
        "deflated": "compressed members",
        "expanded": "something else",
        "bytearray": "asks for code",
        "sparse": "asks for code",
        "laughs": "something else",
        "endless": "something else",
        "declared": "damaged",
        "large": "overlapping members",
        "twice": "overlapping members",
    }.items():
        assert expected in said[kind, True], (kind, said[kind, True])
        if kind != "declared":  # which is read in part where the file is only mapped
            assert expected in said[kind, False], (kind, said[kind, False])


@pytest.mark.parametrize("name", ["../../escaped", "x/../../escaped", "x/\x1b[31m", "x/data.pkl", "x/DATA.PKL"])
def test_hostile_member_names(name: str, tmp_path: Path):
    path = tmp_path / "x.pth"
    torch.save(contents(), path)
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path, "a") as archive:  # of a second x/data.pkl
        archive.writestr(name, "payload")
    with pytest.raises(SnapshotError, match="hostile member names"):
        read(path)
    assert not list(tmp_path.rglob("escaped"))


def test_what_torch_saves_of_any_model_is_read(tmp_path: Path):
    """Half precision, integers, shared weights and parameters, as other programs write them."""
    shared = torch.nn.Linear(3, 3)
    weights = {
        **{str(kind): torch.ones(3).to(kind) for kind in (torch.bfloat16, torch.float16, torch.float64, torch.bool)},
        **{str(kind): torch.ones(3).to(kind) for kind in (torch.int8, torch.uint8, torch.int16, torch.int32)},
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "first": shared.weight.data,
        "second": shared.weight.data,
        "view": torch.arange(10.0)[2:5],
    }
    torch.save(weights, tmp_path / "x.pth")
    read_back = read(tmp_path / "x.pth").model
    assert all(torch.equal(read_back[name], tensor) for name, tensor in weights.items())
    torch.save(torch.nn.Sequential(shared, shared).state_dict(), tmp_path / "x.pth")
    assert list(read(tmp_path / "x.pth").model) == ["0.weight", "0.bias", "1.weight", "1.bias"]
