"""Which errors of real libraries, on real damaged bytes, mean damage, and which do not."""

import gzip
import io
import json
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfFileSystem

from sources.readers.damage import is_damage
from sources.source import SourceError
from tests.helpers.hub_server import Fault, HubServer, parquet

PACKED = gzip.compress(b"some text " * 1000)


def corrupt_page() -> None:
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": [f"text {n} of many" * 9 for n in range(500)]}), stream, compression="snappy")
    data = bytearray(stream.getvalue())
    data[200:260] = b"\xff" * 60
    pq.read_table(io.BytesIO(data))


@pytest.mark.parametrize(
    "decode",
    [
        corrupt_page,
        lambda: pq.read_table(io.BytesIO(b"PAR1 and nothing else")),
        lambda: gzip.decompress(PACKED[:-20]),
        lambda: gzip.decompress(b"<html>"),
        lambda: zlib.decompress(b"\xff" * 20),
        lambda: lzma.decompress(b"\xff" * 20),
        lambda: zipfile.ZipFile(io.BytesIO(b"nothing")),
        lambda: tarfile.TarFile(fileobj=io.BytesIO(b"nothing" * 100)),
        lambda: json.loads("{"),
        lambda: b"\xff".decode(),
    ],
)
def test_what_cannot_be_decoded_is_damaged(decode: Callable[[], object]):
    with pytest.raises(Exception) as caught:
        decode()
    assert is_damage(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        OSError(5, "Input/output error"),
        FileNotFoundError(2, "No such file or directory"),
        ConnectionResetError("reset"),
        TimeoutError("slow"),
        MemoryError(),
        pa.ArrowMemoryError("malloc"),
        SourceError("the hub is down", transient=True),
        KeyError("a bug"),
    ],
)
def test_what_did_not_arrive_is_not_damaged(error: Exception):
    assert not is_damage(error)


@pytest.mark.parametrize("failing", [{"status": 503}, {"status": 403}, {"drop_after": 10}])
def test_what_a_hub_does_is_no_damage(failing: dict[str, int], monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("sources.readers.hub.client.DROPPED_WAIT", 0.01)
    HfFileSystem.clear_instance_cache()
    with HubServer() as hub:
        hub.repositories = {"some/data": {"a.parquet": parquet([{"text": "x" * 500}])}}
        hub.faults = [Fault("/resolve/", times=9, **failing)]
        files = HfFileSystem(endpoint=hub.url, token=False)
        with pytest.raises(Exception) as caught, files.open("datasets/some/data/a.parquet") as stream:
            pq.read_table(stream)
    HfFileSystem.clear_instance_cache()
    assert hub.faults[0].times < 9 and not is_damage(caught.value)
