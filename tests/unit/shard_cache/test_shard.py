import bz2
import gzip
import io
import lzma
import pickle
import tarfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import webdataset

from shard_cache.shard import BYTES_PER_SHARD, FORMAT, Shard, decode, encode, read_shard
from storage import Damaged, seal
from tests.helpers.shard_chain import assert_equal, beginning, digest, fill, held, lane_folder, make, open_lane, states

OWNER = {"source": "topics", "lane": 0}


def npy(array: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


def members(**changed: bytes) -> dict[str, bytes]:
    """The first block's members, some of them changed."""
    parts = {name.replace("_npy", ".npy"): data for name, data in changed.items()}
    return {**encode(*make(beginning(0))), **parts}


def regular(name: str, data: bytes, **attributes: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info, data


def write(folder: Path, entries: list[tuple[tarfile.TarInfo, bytes]], blocks: int = 1, **options: object) -> None:
    """A shard made by somebody else: any tar, with a sidecar that agrees with it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    write_bytes(folder, buffer.getvalue(), blocks)


def write_bytes(folder: Path, tar: bytes, blocks: int = 1) -> None:
    before = [digest(state) for state in states(0, blocks)]
    (folder / "000000.tar").write_bytes(tar)
    about = {"shard": "000000.tar", "size": len(tar), "sha256": sha256(tar).hexdigest(), "first": 0, "blocks": blocks}
    record = {"format": FORMAT, **OWNER, **about, "before": before, "begins": beginning(0)}
    (folder / "000000.json").write_bytes(seal(record))


def whole(**changed: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [regular(f"000000.{part}", data) for part, data in members(**changed).items()]


def test_a_valid_shard_of_another_program_is_read(tmp_path: Path):
    write(tmp_path, whole())
    assert_equal(read_shard(tmp_path, 0, OWNER, reaching=0).block(0), beginning(0))


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../000000.x.npy", "000000.X.npy", "000000.x.pyd", "a.json", "000007.json"]
)
def test_members_with_odd_names_are_refused(tmp_path: Path, name: str):
    write(tmp_path, [*whole(), regular(name, b"{}")])
    with pytest.raises(Damaged, match="does not belong"):
        read_shard(tmp_path, 0, OWNER, reaching=0)


KINDS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]


@pytest.mark.parametrize("kind", [*KINDS, tarfile.GNUTYPE_SPARSE, tarfile.CONTTYPE])
def test_members_that_are_no_plain_files_are_refused(tmp_path: Path, kind: bytes):
    write(tmp_path, [*whole(), regular("000000.x.npy", b"", type=kind, linkname="/etc/passwd")])
    with pytest.raises(Damaged, match=r"does not belong|not a tar"):
        read_shard(tmp_path, 0, OWNER, reaching=0)


def test_extended_headers_are_refused(tmp_path: Path):
    write(tmp_path, [*whole(), regular("000000.x.npy", b"", pax_headers={"size": "9" * 30})], format=tarfile.PAX_FORMAT)
    with pytest.raises(Damaged, match="does not belong"):
        read_shard(tmp_path, 0, OWNER, reaching=0)


@pytest.mark.parametrize("size", [2**40, -(2**30)])
def test_a_member_with_a_false_size_is_refused(tmp_path: Path, size: int):
    header = regular("000000.ids.npy", b"", size=size)[0].tobuf(tarfile.GNU_FORMAT)
    write_bytes(tmp_path, header + bytes(10240))
    with pytest.raises(Damaged, match=r"does not belong|not a tar"):
        read_shard(tmp_path, 0, OWNER, reaching=0)


def test_a_member_of_holes_takes_no_memory(tmp_path: Path):
    """The library would make its terabyte of zeros from 512 bytes."""
    sparse = bytearray(regular("000000.x.npy", b"", type=tarfile.GNUTYPE_SPARSE)[0].tobuf(tarfile.GNU_FORMAT))
    sparse[483:495] = b"%011o\0" % 2**32  # the size with its holes
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    write(tmp_path, whole())
    tar = (tmp_path / "000000.tar").read_bytes()
    write_bytes(tmp_path, bytes(sparse) + tar)
    with tarfile.open(fileobj=io.BytesIO(bytes(sparse) + tar)) as archive:
        assert archive.next().size == 2**32
    with pytest.raises(Damaged, match="does not belong"):
        read_shard(tmp_path, 0, OWNER, reaching=0)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_tar_is_refused(tmp_path: Path, compress):
    """A few bytes of one can be unpacked without end."""
    write(tmp_path, whole())
    write_bytes(tmp_path, compress((tmp_path / "000000.tar").read_bytes()))
    with pytest.raises(Damaged, match=r"does not belong|not a tar"):
        read_shard(tmp_path, 0, OWNER, reaching=0)


def test_shards_of_the_first_version_are_read(folder: Path):
    """Their writer was tarfile, their members came in the order of their making, and they have no notes."""
    state = beginning(0)
    arrays, _ = make(state)
    assert list(arrays) == ["ids", "ends"]
    folder.mkdir()
    write(folder, whole(), format=tarfile.USTAR_FORMAT)
    shard = read_shard(folder, 0, OWNER, reaching=0)
    assert_equal(shard.block(0), state)
    assert shard.block(0).notes is None


def test_a_member_that_comes_twice_is_refused(tmp_path: Path):
    write(tmp_path, whole() + whole())
    with pytest.raises(Damaged, match="does not belong"):
        read_shard(tmp_path, 0, OWNER, reaching=0)


def test_a_block_that_is_not_in_the_tar_is_missed(tmp_path: Path):
    write(tmp_path, whole(), blocks=2)
    with pytest.raises(Damaged, match="missing"):
        read_shard(tmp_path, 0, OWNER, reaching=0)


@pytest.mark.parametrize(
    "record",
    [[], {"format": FORMAT}, {"before": 3, "blocks": 3}, {"before": ["x"] * 99, "blocks": 99}, {"blocks": "1"}],
)
def test_sidecars_of_another_shape_are_refused(tmp_path: Path, record: object):
    write(tmp_path, whole())
    about = {"format": FORMAT, **OWNER, "shard": "000000.tar", "first": 0}
    (tmp_path / "000000.json").write_bytes(seal({**about, **record}) if isinstance(record, dict) else b"[" * 100_000)
    with pytest.raises(Damaged):
        read_shard(tmp_path, 0, OWNER, reaching=0)


class Attack:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("unpickled"),)


def header(shape: str, descr: str = "'<i8'") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    "data",
    [
        npy(np.array([Attack()], dtype=object), allow_pickle=True),
        pickle.dumps(Attack()),
        header("(1,)", "'|O'") + pickle.dumps(Attack()),
        npy(np.zeros(2, dtype=[("a", "i4")])),
        npy(np.array(["text"])),
        npy(np.asfortranarray(np.eye(3))),
        npy(np.zeros(4), version=(2, 0)),
        npy(np.zeros(4))[:-1],
        npy(np.zeros(4)) + b"more",
        header("(1000000000000,)") + bytes(8),
        header("(-1, -1)") + bytes(8),
        header("(0, 99999999999999999999999)"),
        header("(" * 50) + bytes(8),
        header("__import__('os').getcwd()") + bytes(8),
        b"",
    ],
)
def test_arrays_of_another_kind_or_size_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Damaged):
        decode(members(ids_npy=data))
    assert not list(tmp_path.iterdir())


def test_only_numbers_are_taken():
    for array in (np.array([Attack()], dtype=object), np.array(["text"]), np.zeros(2, dtype="M8[s]")):
        with pytest.raises(ValueError, match="cannot be cached"):
            encode({"ids": array}, None)
    for name in ("../ids", "json.x", "Ids", ""):
        with pytest.raises(ValueError, match="cannot be cached"):
            encode({name: np.zeros(2)}, None)


def test_arrays_of_every_shape_come_back_as_they_were():
    arrays = {
        "empty": np.zeros((0, 3), np.int32),
        "single": np.array(7, np.int64),
        "turned": np.arange(6).reshape(2, 3).T,
        "strided": np.arange(20, dtype=np.uint16)[::3],
        "flags": np.array([True, False]),
        "big_endian": np.arange(3, dtype=">f8"),
    }
    block = decode(encode(arrays, {"n": [1, 2.5, None, "ä"]}, {"short": 3}))
    assert block.after == {"n": [1, 2.5, None, "ä"]} and block.notes == {"short": 3}
    for name, array in arrays.items():
        np.testing.assert_array_equal(block.arrays[name], array)
        assert block.arrays[name].shape == array.shape
        assert not block.arrays[name].flags.writeable


def test_large_blocks_make_shards_of_fewer():
    shard = Shard(0, None)
    while not shard.is_full:
        shard.blocks.append(encode({"ids": np.zeros((256, 2048), np.uint16)}, None))
    assert BYTES_PER_SHARD <= len(shard.pack()) < BYTES_PER_SHARD + 3 * 2**20


def test_the_same_blocks_give_the_same_bytes(tmp_path: Path):
    for name in "ab":
        fill(open_lane(tmp_path / name), 0, 16)
    a, b = (lane_folder(tmp_path / name) for name in "ab")
    for file in ("000000.tar", "000000.json"):
        assert (a / file).read_bytes() == (b / file).read_bytes()


def test_plain_webdataset_and_tarfile_read_a_shard(folder: Path):
    fill(open_lane(folder), 0, 16)
    path = lane_folder(folder) / "000000.tar"
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{number:06d}" for number in range(16)]
    for sample, state in zip(samples, states(0, 16), strict=True):
        ids = np.load(io.BytesIO(sample["ids.npy"]), allow_pickle=False)
        np.testing.assert_array_equal(ids, make(state)[0]["ids"])
    with tarfile.open(path) as tar:
        infos = tar.getmembers()
    assert [info.name for info in infos[:4]] == ["000000.ends.npy", "000000.ids.npy", "000000.json", "000001.ends.npy"]
    assert infos[0].get_info()["type"] == tarfile.REGTYPE and path.read_bytes()[257:263] == b"ustar\0"
    assert {(info.mtime, info.uid, info.gid, info.uname, info.mode) for info in infos} == {(0, 0, 0, "", 0o644)}
    assert held(open_lane(folder), 0, 16) == list(range(16))
