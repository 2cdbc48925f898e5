"""Packed files are read as what they hold, from any place in it, and say when they are damaged."""

import bz2
import gzip
import io
from pathlib import Path

import pyarrow as pa
import pytest

from sources.readers.packed import PACKED, open_file


def pack(data: bytes, suffix: str) -> bytes:
    if suffix == ".zst":
        return pa.Codec("zstd").compress(data, asbytes=True)
    return gzip.compress(data) if suffix == ".gz" else bz2.compress(data)


@pytest.fixture(scope="module")
def data(texts) -> bytes:
    return "\n".join(texts[:60]).encode()


@pytest.mark.parametrize("suffix", PACKED)
def test_a_packed_file_reads_as_a_plain_one(tmp_path: Path, data: bytes, suffix: str):
    path = tmp_path / f"a.txt{suffix.upper()}"
    path.write_bytes(pack(data, suffix) + pack(b"\nand another stream", suffix))
    whole = data + b"\nand another stream"
    with open_file(path) as stream:
        assert stream.read() == whole and stream.tell() == len(whole)
        for place in (0, 7, 300_000 % len(whole), len(whole) - 5, 3, len(whole)):
            assert stream.seek(place) == place and stream.tell() == place
            assert stream.readline(1000) == io.BytesIO(whole[place:]).readline(1000)
        assert stream.seek(10 * len(whole)) == len(whole)
        with pytest.raises(io.UnsupportedOperation):
            stream.seek(0, io.SEEK_END)


@pytest.mark.parametrize("suffix", PACKED)
def test_damage_is_a_value_error_and_a_missing_file_is_not(tmp_path: Path, data: bytes, suffix: str):
    path = tmp_path / f"a{suffix}"
    whole = pack(data, suffix)
    for bad in (whole[: len(whole) // 2], whole[:-1], b"no such thing " * 9):
        path.write_bytes(bad)
        with pytest.raises(ValueError), open_file(path) as stream:
            stream.read()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        open_file(path)


def test_other_files_are_opened_as_they_are(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"plain")
    with open_file(tmp_path / "a.txt") as stream:
        assert stream.read() == b"plain"
