"""Which errors of real libraries, on real damaged bytes, mean damage, and which do not."""

import gzip
import io
import json
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import errors

from sources.readers.damage import is_damage
from sources.source import SourceError

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
        httpx2.ReadTimeout("slow"),
        httpx2.RemoteProtocolError("cut"),
        errors.HfHubHTTPError("error 503", response=httpx2.Response(503, request=httpx2.Request("GET", "http://a"))),
        SourceError("the hub is down", transient=True),
        KeyError("a bug"),
    ],
)
def test_what_did_not_arrive_is_not_damaged(error: Exception):
    assert not is_damage(error)
