"""One shard: a tar of up to 16 blocks in webdataset's convention, and a JSON sidecar without which it does not exist.

    000016.tar      000016.ids.npy, 000016.json (the state after the block), 000016.notes.json, ..., 000017.ids.npy, ...
    000016.json     whose shard this is, the tar's size and SHA-256, the digest of the state before each block, and the
                    state before the first
A shard is read whole, hashed, and parsed from those same bytes in memory. webdataset writes the tar and takes it apart;
its decoders, which unpickle, are not used. Only what `pack` writes is accepted: plain files with expected names, and
arrays of plain numbers whose header agrees with their bytes. Nothing is unpickled and nothing is extracted to disk: a
shard made by somebody else can give wrong numbers, and nothing worse.
"""

import hashlib
import io
import json
import math
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from storage import JSON, Damaged, read_regular, seal, unseal, write_atomic

FORMAT = 1
BLOCKS_PER_SHARD = 16
BYTES_PER_SHARD = 4 * 2**20  # fewer blocks when they are large: a shard is in memory while it is filled and read

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_MEMBER = re.compile(r"[0-9]{6,18}\.([a-z][a-z0-9_]*\.npy|json|notes\.json)")
_KINDS = "biuf"  # truth values, integers, floats
_FOREIGN = "it has a member that does not belong there"

Members = dict[str, bytes]  # a block in a tar: bytes by what follows the number in a member's name


@dataclass(frozen=True)
class CachedBlock:
    """What was appended: arrays by name, the state after the block, and notes on it, None in older shards.

    The arrays cannot be written to.
    """

    arrays: dict[str, np.ndarray]
    after: JSON
    notes: JSON


@dataclass
class Shard:
    """Consecutive blocks as they are in a tar."""

    first: int
    begins: JSON  # the state before block `first`, if whoever appended it said
    before: list[str] = field(default_factory=list)  # digests of the states before the blocks
    blocks: list[Members] = field(default_factory=list)

    @property
    def last(self) -> int:
        return self.first + len(self.blocks) - 1

    @property
    def is_full(self) -> bool:
        size = sum(len(member) for block in self.blocks for member in block.values())
        return len(self.blocks) >= BLOCKS_PER_SHARD or size >= BYTES_PER_SHARD

    def holds(self, number: int, before: str) -> bool:
        return self.first <= number <= self.last and self.before[number - self.first] == before

    def block(self, number: int) -> CachedBlock:
        """Return one of the shard's blocks. Raises Damaged."""
        return decode(self.blocks[number - self.first])

    def pack(self) -> bytes:
        """Return the tar's bytes, the same for the same blocks on every machine."""
        from webdataset.writer import TarWriter  # takes up to a second to import

        buffer = io.BytesIO()
        with TarWriter(buffer, user="", group="", mode=0o644, mtime=0, encoder=False) as tar:
            for number, block in enumerate(self.blocks, start=self.first):
                tar.write({"__key__": f"{number:06d}", **block})
        return buffer.getvalue()

    def describe(self, tar: bytes, owner: Mapping[str, JSON]) -> bytes:
        """Return the sidecar's bytes."""
        return seal(
            {
                "format": FORMAT,
                **owner,
                "shard": paths(Path(), self.first)[0].name,
                "size": len(tar),
                "sha256": hashlib.sha256(tar).hexdigest(),
                "first": self.first,
                "blocks": len(self.blocks),
                "before": self.before,
                "begins": self.begins,
            }
        )


def paths(folder: Path, first: int) -> tuple[Path, Path]:
    """Return where the shard that begins with block `first` has its tar and its sidecar."""
    return folder / f"{first:06d}.tar", folder / f"{first:06d}.json"


def write_shard(folder: Path, first: int, tar: bytes, sidecar: bytes) -> None:
    """Write a shard, over an older one if there is one. Raises OSError."""
    tar_path, sidecar_path = paths(folder, first)
    # Whoever reads between these lines finds no shard, rather than one whose halves differ.
    sidecar_path.unlink(missing_ok=True)
    write_atomic(tar_path, tar)
    write_atomic(sidecar_path, sidecar)


def read_shard(folder: Path, first: int, owner: Mapping[str, JSON], reaching: int) -> Shard | None:
    """Return the verified shard that begins with block `first`; None if there is none, or it ends before `reaching`.

    Raises Damaged.
    """
    tar_path, sidecar_path = paths(folder, first)
    tried, failure = None, Damaged("")
    while (sidecar := read_regular(sidecar_path)) is not None:
        if sidecar == tried:
            raise failure
        tried = sidecar
        try:
            return _verified(unseal(sidecar), tar_path, first, owner, reaching)
        except Damaged as error:
            failure = error  # unless another process has just written this shard again: then the sidecar is another
    return None


def encode(arrays: dict[str, np.ndarray], after: JSON, notes: JSON = None) -> Members:
    """Return a block as a tar's members. Raises ValueError for arrays of other things than numbers."""
    members: Members = {}
    for name, array in arrays.items():
        array = np.asarray(array, order="C")
        if not _NAME.fullmatch(name) or array.dtype.kind not in _KINDS:
            raise ValueError(f"an array named {name!r} of {array.dtype} cannot be cached")
        buffer = io.BytesIO()
        np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
        members[f"{name}.npy"] = buffer.getvalue()
    members["json"] = json.dumps(after, separators=(",", ":")).encode()
    if notes is not None:
        members["notes.json"] = json.dumps(notes, separators=(",", ":")).encode()
    return members


def decode(members: Members) -> CachedBlock:
    """Return the block that these members are. Raises Damaged."""
    try:
        parts = {part.removesuffix(".npy"): data for part, data in members.items() if part.endswith(".npy")}
        arrays = {name: _array(data) for name, data in parts.items()}
        return CachedBlock(arrays, json.loads(members["json"]), json.loads(members.get("notes.json", b"null")))
    except Damaged:
        raise
    except Exception:  # NumPy's and JSON's parsers raise many kinds
        raise Damaged("a member cannot be read") from None


def _array(data: bytes) -> np.ndarray:
    shape, dtype, start = _array_header(data[: 10 + int.from_bytes(data[8:10], "little")])
    # Before anything of the claimed size is allocated.
    if math.prod(shape) * dtype.itemsize != len(data) - start:
        raise Damaged("an array's header does not fit its bytes")
    return np.ndarray(shape, dtype, data, start)


@lru_cache(maxsize=1024)  # parsing one takes longer than all else of an array, and most come again
def _array_header(data: bytes) -> tuple[tuple[int, ...], np.dtype, int]:
    """Return an array's shape, type, and the place where its numbers begin."""
    header = io.BytesIO(data)
    if np.lib.format.read_magic(header) != (1, 0):
        raise Damaged("an array has another format")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(header)
    if dtype.kind not in _KINDS or fortran_order:
        raise Damaged("an array is of another kind")
    return shape, dtype, header.tell()


def _verified(about: dict[str, Any], path: Path, first: int, owner: Mapping[str, JSON], reaching: int) -> Shard | None:
    """Return the shard that a sidecar describes, or None when it ends before block `reaching`. Raises Damaged."""
    expected = {"format": FORMAT, **owner, "shard": path.name, "first": first}
    if {key: about.get(key) for key in expected} != expected:
        raise Damaged("its sidecar is another shard's")
    before = about.get("before")
    if not isinstance(before, list) or not 0 < len(before) <= BLOCKS_PER_SHARD or len(before) != about.get("blocks"):
        raise Damaged("its sidecar does not say what its blocks are")
    if first + len(before) <= reaching:
        return None
    tar = read_regular(path, size=about.get("size"))
    if tar is None:
        raise Damaged("it is missing")
    if hashlib.sha256(tar).hexdigest() != about.get("sha256"):
        raise Damaged("SHA-256 differs")
    return Shard(first, about.get("begins"), before, _blocks(tar, first, len(before)))


def _blocks(tar: bytes, first: int, count: int) -> list[Members]:
    """Return the members of each block of a tar. Raises Damaged for all that `pack` would not have written."""
    from webdataset.tariterators import base_plus_ext, group_by_keys, tar_file_iterator

    _check_headers(tar)
    stream: Any = io.BytesIO(tar)  # declared as a TarFile there

    def files() -> Iterator[dict[str, Any]]:
        for file in tar_file_iterator(stream, skip_meta=None):
            if not _MEMBER.fullmatch(file["fname"]):
                raise Damaged(_FOREIGN)
            yield {**file, "__url__": ""}

    blocks: list[Members] = []
    try:
        for sample in group_by_keys(files(), keys=base_plus_ext):
            if len(blocks) == count or int(sample.pop("__key__")) != first + len(blocks):
                raise Damaged(_FOREIGN)
            del sample["__url__"]
            blocks.append(sample)
    except (tarfile.TarError, ValueError):  # ValueError: a member that comes twice
        raise Damaged(_FOREIGN) from None
    if len(blocks) < count or any("json" not in block for block in blocks):
        raise Damaged("a member is missing")
    return blocks


def _check_headers(tar: bytes) -> None:
    """Raise Damaged for what the library would trust: a compressed tar, and members of other kinds or false sizes.

    Of those, a few bytes can claim to be terabytes.
    """
    offset = 0
    while any(header := tar[offset : offset + tarfile.BLOCKSIZE]):
        try:
            size = int(header[124:136].split(b"\0")[0], 8)
        except ValueError:
            raise Damaged("it is not a tar") from None
        start = offset + tarfile.BLOCKSIZE
        if not header[:6].isdigit() or header[156:157] != tarfile.REGTYPE or not 0 <= size <= len(tar) - start:
            raise Damaged(_FOREIGN)
        offset = start + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
