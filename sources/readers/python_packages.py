"""The Python sources of the running interpreter: its standard library and the installed packages.

The one large source that every machine has without a network: about 200 MB with this project's own requirements.
"""

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from sources.config import PythonPackagesSpec
from sources.readers.folder import File, FolderPin, FolderSource
from sources.source import SourceGone
from storage import open_regular

MAX_BYTES = 1_000_000  # larger ones are generated tables


class PackagesPin(FolderPin):
    roots: dict[str, str]


class PythonPackagesSource(FolderSource):
    """Each .py file is a document; the position behind it is 1."""

    def __init__(self, spec: PythonPackagesSpec, pin: FolderPin | None = None):
        listed = [file for label, root in python_roots().items() for file in _python_files(label, root)]
        if not listed:
            raise SourceGone(f"there are no Python files in {', '.join(map(str, python_roots().values()))}")
        usable = [file for file in listed if 0 < file.size <= MAX_BYTES]
        super().__init__(spec.source_name, "the Python packages", usable, pin)
        self.counts.update("empty files" for file in listed if file.size == 0)
        self.counts.update(f"files over {MAX_BYTES} bytes" for file in listed if file.size > MAX_BYTES)

    def pin(self) -> PackagesPin:
        return {**super().pin(), "roots": {label: str(root) for label, root in python_roots().items()}}

    def documents(self, file: File, start: int) -> Iterator[tuple[str, int]]:
        if start == 0:
            try:
                with open_regular(file.path) as stream:
                    text = stream.read(MAX_BYTES).decode("utf-8-sig")
            except UnicodeDecodeError:
                self.skip(file.key, "files that are not UTF-8")
            else:
                yield text, 1


def python_roots() -> dict[str, Path]:
    """Return the standard library's folder and the packages' folders, each real folder once."""
    roots: dict[str, Path] = {}
    for label in ("stdlib", "purelib", "platlib"):
        root = Path(sysconfig.get_path(label)).resolve()
        if root not in roots.values():
            roots[label] = root
    return roots


def _python_files(label: str, root: Path) -> Iterator[File]:
    for folder, subfolders, names in os.walk(root):
        # Packages may lie inside the standard library's folder; they are a root of their own.
        subfolders[:] = [name for name in subfolders if name not in ("__pycache__", "site-packages", "dist-packages")]
        for path in (Path(folder, name) for name in names if name.endswith(".py")):
            try:
                yield File(f"{label}/{path.relative_to(root).as_posix()}", path, path.stat().st_size)
            except OSError:  # a dangling link
                continue
