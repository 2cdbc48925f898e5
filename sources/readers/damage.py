"""What tells a damaged file from one that did not arrive."""

import gzip
import lzma
import tarfile
import zipfile
import zlib

from pyarrow import ArrowException

# ValueError: JSON, UTF-8 or a column's type; OverflowError: a length that no file has.
_DECODING = (ArrowException, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile)
_DAMAGE = (*_DECODING, ValueError, OverflowError)


def is_damage(error: BaseException) -> bool:
    """Whether a library could not decode bytes that it was given. Errors of disks have a number, those of networks a
    type of their own."""
    if isinstance(error, MemoryError):  # one is an ArrowException, too
        return False
    if isinstance(error, OSError):  # pyarrow raises the plain type, for compressed pages among others
        return type(error) in (OSError, gzip.BadGzipFile) and error.errno is None
    return isinstance(error, _DAMAGE) or type(error).__name__ == "ZstdError"
