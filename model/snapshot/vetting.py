"""Checks of a checkpoint file before torch reads it; needs no torch itself.

torch.load does not check the zip's checksums, and `weights_only=True` still builds every type on its list of harmless
ones, in any size. So a file is refused, before anything in it is unpickled, unless it is the kind of zip that
torch.save writes and its pickle imports nothing but tensors and dicts. The memory that a file can make this process
allocate is then bounded by the size of the file.
"""

import errno
import os
import pickletools
import stat
import zipfile
from io import BufferedReader
from pathlib import Path

LONGEST = 80  # characters of a name in a message
_HEADER_BYTES = 30  # of the local header of a zip member, without its name
# What torch.save uses for tensors, parameters and state dicts. A bytearray or a sparse tensor could have any size.
_REBUILDERS = {
    "collections OrderedDict",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    "torch.nn.parameter Parameter",
}
_STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_ALLOWED_IMPORTS = _REBUILDERS | {f"torch {kind}Storage" for kind in _STORAGES}
_OTHER_IMPORTS = {"STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"}  # opcodes that torch.save does not use


class SnapshotError(ValueError):
    """A checkpoint file that cannot be written or trusted; the message names the file and what to do."""


class NewerFormat(SnapshotError):
    """A file of a format that a later version of this program writes. It is not damaged: nothing may replace it."""


def refuse_newer(path: Path, found: object, known: int) -> None:
    """Raise NewerFormat when `found` is a later format than `known`."""
    if type(found) is int and found > known:
        raise NewerFormat(
            f"{path}: has format {found}, and this version reads format {known}; use the version that wrote it."
        )


def open_regular(path: str | os.PathLike) -> BufferedReader:
    """Open a regular file for reading. Raises OSError, also for a pipe or a device, which may have no end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # else opening a pipe would wait for its other end
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def shown(text: str) -> str:
    """A file's own text as a message may show it: short, and without what a terminal obeys."""
    short = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in short)


def vet(path: Path, checksums: bool) -> int:
    """Return the size of the pickle in `path`, in bytes; nothing is unpickled.

    Raises SnapshotError, in one sentence, unless this is a whole file of the kind that torch.save writes.
    """
    try:
        with open_regular(path) as file:
            start = file.read(4)
    except OSError as error:
        raise SnapshotError(f"{path}: cannot be opened ({error.strerror}); check the path.") from error
    if not b"PK\x03\x04".startswith(start):
        raise SnapshotError(f"{path}: not a checkpoint; give a .pth file written by torch.save.")
    try:
        if not zipfile.is_zipfile(path):
            raise SnapshotError(f"{path}: the checkpoint is cut short or empty; use an older one or a copy.")
        with zipfile.ZipFile(path) as archive:
            if defect := _defect(archive):
                raise SnapshotError(
                    f"{path}: the checkpoint is damaged or was not written by torch.save ({defect}); use another one."
                )
            damaged = archive.testzip() if checksums else None
            pickled = pickle_of(archive)
            refused = _imports(pickled) - _ALLOWED_IMPORTS
    except SnapshotError:
        raise
    except Exception as error:  # a damaged directory raises anything from BadZipFile to NotImplementedError
        raise SnapshotError(f"{path}: the checkpoint is damaged; use an older one or a copy.") from error
    if damaged is not None:
        raise SnapshotError(f"{path}: the checkpoint is damaged (in {shown(damaged)}); use an older one or a copy.")
    if refused:
        raise SnapshotError(
            f"{path}: the file asks for code to be run ({shown(min(refused))!r}) and was refused; "
            "use a checkpoint of tensors and plain values."
        )
    return len(pickled)


def _defect(archive: zipfile.ZipFile) -> str | None:
    """What no zip of torch.save has: members that unpack to more than the file holds, or that two readers would read
    differently."""
    members = sorted(archive.infolist(), key=lambda member: member.header_offset)
    names = [member.filename for member in members]
    if any(
        member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size for member in members
    ):
        return "compressed members"
    # torch looks names up case-insensitively
    if len({name.lower() for name in names}) < len(names) or not all(
        name.isprintable() and ".." not in name.split("/") for name in names
    ):
        return "hostile member names"
    ends = [0, *(m.header_offset + _HEADER_BYTES + len(m.filename) + m.compress_size for m in members)]
    starts = [*(member.header_offset for member in members), archive.start_dir]
    if starts[0] != 0 or archive.comment or any(start < end for end, start in zip(ends, starts, strict=True)):
        return "overlapping members"
    return None


def pickle_of(archive: zipfile.ZipFile) -> bytes:
    """The pickle in a file of torch.save."""
    (name,) = (name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
    return archive.read(name)


def _imports(pickled: bytes) -> set[str]:
    """What a pickle would import, as "module name"; nothing is unpickled."""
    return {
        str(argument) if opcode.name == "GLOBAL" else opcode.name
        for opcode, argument, _ in pickletools.genops(pickled)
        if opcode.name == "GLOBAL" or opcode.name in _OTHER_IMPORTS
    }
