"""What decoding a parquet column may take, read off its page headers before anything is decoded.

A footer may say anything, and a page of kilobytes may hold gigabytes. Each page's header says how much memory it takes
unpacked and how many values it holds; that is what pyarrow allocates. It shows neither, so headers are read here. They
are Thrift's compact protocol (parquet-format, parquet.thrift: PageHeader).
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

LARGEST_PAGE = 512 * 1024**2  # bytes unpacked; a page of a thousand books has 400 MB
MOST_ENTRIES = 2**20  # of a dictionary that is searched for its longest
NESTED_VALUE = 16  # bytes that any value of a list takes, at least
DICTIONARY_PAGE, DATA_PAGES = 2, {0: 5, 3: 8}  # page types; of data pages with the field that holds their own header
DICTIONARY_ENCODINGS, DELTA_STRINGS = (2, 8), 7


class Page(NamedTuple):
    """One page: its bytes unpacked, its values, and where its packed bytes are in the column chunk."""

    type: int
    size: int
    values: int
    encoding: int
    begin: int
    end: int


class Need(NamedTuple):
    """What the values of a column chunk may take in memory, in bytes at most."""

    value: int  # one value, where all of its page's are alike
    total: int  # all values together


class TooLarge(Exception):
    """A column chunk has a page, or lists, that may take more memory than a file may ask for."""


def need(chunk: bytes, column: pq.ColumnChunkMetaData) -> Need:
    """Return what decoding a column chunk may take. Raises TooLarge, and OSError where a header is damaged."""
    value = total = longest = 0
    for page in _pages(chunk):
        if page.size > LARGEST_PAGE:
            raise TooLarge(f"a page of {page.size // 1024**2:,} MiB")
        if page.type == DICTIONARY_PAGE:
            longest = _longest_entry(chunk, page, column.compression)
        elif page.type in DATA_PAGES and page.values:
            if page.encoding in DICTIONARY_ENCODINGS:
                each = longest
            elif page.encoding == DELTA_STRINGS:
                each = page.size  # a value may repeat all that was in its page before
            else:
                each = -(-page.size // page.values)
            value = max(value, each)
            total += max(each, NESTED_VALUE) * page.values
    return Need(value, total)


def chunk_place(column: pq.ColumnChunkMetaData) -> tuple[int, int]:
    """Return where a column chunk begins in its file, and its length."""
    start = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset and 0 < column.dictionary_page_offset < start:
        start = column.dictionary_page_offset
    return start, column.total_compressed_size


def _pages(chunk: bytes) -> Iterator[Page]:
    at = 0
    while at < len(chunk):
        try:
            header, begin = _read_struct(chunk, at)
            kind, size, packed = header[1,], header[2,], header[3,]
            own = 7 if kind == DICTIONARY_PAGE else DATA_PAGES.get(kind, 0)
            encoding = header.get((own, 4 if own == 8 else 2), 0)
            page = Page(kind, size, header.get((own, 1), 0), encoding, begin, begin + packed)
            if min(page.size, page.values, packed) < 0 or page.end > len(chunk):
                raise ValueError
        except (KeyError, IndexError, ValueError):
            raise OSError("a page header is damaged") from None
        yield page
        at = page.end


def _longest_entry(chunk: bytes, page: Page, compression: str) -> int:
    """Return the bytes of a dictionary's longest entry, or of all where that cannot be told."""
    if page.values > MOST_ENTRIES:
        return page.size
    data: bytes | pa.Buffer = chunk[page.begin : page.end]
    try:
        if compression != "UNCOMPRESSED":
            codec = "lz4_raw" if compression == "LZ4" else compression.lower()
            data = pa.Codec(codec).decompress(data, page.size)
        view, at, longest = memoryview(data), 0, 0
        for _ in range(page.values):
            (length,) = struct.unpack_from("<I", view, at)
            longest, at = max(longest, length), at + 4 + length
        return longest if at == len(view) else page.size
    except (pa.ArrowException, OSError, ValueError, struct.error):  # such as numbers, or a codec of Hadoop's
        return page.size


def _read_struct(data: bytes, at: int, above: tuple[int, ...] = ()) -> tuple[dict[tuple[int, ...], int], int]:
    """Return a struct's numbers by their fields, those of structs in it as (field, its field), and where it ends."""
    numbers: dict[tuple[int, ...], int] = {}
    field = 0
    while byte := data[at]:
        at += 1
        field += byte >> 4
        if byte >> 4 == 0:
            field, at = _read_number(data, at)
        match byte & 15:
            case 1 | 2:  # true, false
                pass
            case 3:
                at += 1
            case 4 | 5 | 6:
                numbers[*above, field], at = _read_number(data, at)
            case 7:
                at += 8
            case 8:  # bytes, such as a statistic's
                length, at = _read_varint(data, at)
                at += length
            case 12 if len(above) < 3:
                inner, at = _read_struct(data, at, (*above, field))
                numbers |= inner
            case _:  # lists, sets and maps, of which a page header has none
                raise ValueError
    return numbers, at + 1


def _read_number(data: bytes, at: int) -> tuple[int, int]:
    number, at = _read_varint(data, at)
    return (number >> 1) ^ -(number & 1), at


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
        if shift > 63:
            raise ValueError
