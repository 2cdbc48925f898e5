"""C sources as a library for ctypes, compiled once for this machine and kept in the user's cache."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

COMPILE_SECONDS = 60


def compiled_library(name: str, sources: Sequence[Path], flags: Sequence[str]) -> ctypes.CDLL | None:
    """The library of `sources`, kept as `name`-...; None where there is no C compiler, or where it fails.

    It is compiled with OpenMP where the compiler has that: torch's threads are then its threads, too.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    try:
        return ctypes.CDLL(str(_compiled(name, compiler, sources, flags)))
    except (OSError, RuntimeError, subprocess.SubprocessError):  # RuntimeError: the user has no home folder
        return None


def _compiled(name: str, compiler: str, sources: Sequence[Path], flags: Sequence[str]) -> Path:
    """The path of the library. Raises OSError or SubprocessError where it can be neither found nor made."""
    text = b"".join(path.read_bytes() for path in sources)
    key = hashlib.sha256(text + " ".join((compiler, *flags, _processor())).encode()).hexdigest()[:16]
    folder = _cache_folder()
    path = folder / f"{name}-{key}{sysconfig.get_config_var('SHLIB_SUFFIX') or '.so'}"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch, path.name)
            command = [compiler, *flags, "-shared", "-fPIC", "-x", "c", *map(str, sources), "-o", str(made), "-lm"]
            if subprocess.run([*command, "-fopenmp"], capture_output=True, timeout=COMPILE_SECONDS).returncode:
                subprocess.run(command, capture_output=True, timeout=COMPILE_SECONDS, check=True)  # one thread then
            made.rename(path)
    return path


def _processor() -> str:
    """What -march=native depends on: a home folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(next((line for line in lines if line.startswith(key)), "") for key in ("model name", "flags"))


def _cache_folder() -> Path:
    """A folder that only this user can write: whoever can write it could have code run here."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = base / "forethought"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    owner = folder.stat()
    if owner.st_uid != os.getuid() or owner.st_mode & 0o022:
        raise PermissionError(f"{folder} can be written by others")
    return folder
