"""Files packed by gzip, bzip2 or zstandard, read as what they hold, in little memory however much that is."""

import bz2
import gzip
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from storage import open_regular

PACKED = (".gz", ".bz2", ".zst")
PIECE = 128 * 1024  # bytes that are unpacked at once


def _open(path: Path) -> BinaryIO:
    opened = open_regular(path)
    match path.suffix.lower():
        case ".gz":
            return cast(BinaryIO, gzip.open(opened))
        case ".bz2":
            return cast(BinaryIO, bz2.open(opened))
    # Its library refuses a file that asks for a window of more than 128 MiB.
    return cast(BinaryIO, pa.CompressedInputStream(pa.PythonFile(opened), "zstd"))


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading, unpacked where its name ends as one of PACKED.

    Reading raises ValueError where packed data is damaged, and OSError as any file does.
    """
    packed = path.suffix.lower() in PACKED
    return io.BufferedReader(Unpacked(lambda: _open(path)), PIECE) if packed else open_regular(path)


class Unpacked(io.RawIOBase):
    """What `begin` gives from a packed file's beginning, as a file that can be sought; backwards it begins again."""

    def __init__(self, begin: Callable[[], BinaryIO]):
        self._begin = begin
        self._stream, self._at = begin(), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation("the end of a packed file is known when it is read")
        target = offset + (self._at if whence == io.SEEK_CUR else 0)
        if target < self._at:
            self._stream, self._at = self._begin(), 0
        while self._at < target and self._read(min(target - self._at, PIECE)):
            pass
        return self._at

    def readinto(self, buffer, /) -> int:
        view = memoryview(buffer)
        data = self._read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()

    def _read(self, size: int) -> bytes:
        try:
            data = self._stream.read(size)
        except (EOFError, zlib.error) as error:
            raise ValueError(str(error)) from error
        except OSError as error:
            if error.errno is None:  # what the data breaks, not what the system refuses
                raise ValueError(str(error)) from error
            raise
        self._at += len(data)
        return data
