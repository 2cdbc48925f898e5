"""How the process ends: with its status, whatever its output and its reading threads do."""

import os
import threading
from pathlib import Path

import pytest

from engine.control.exit import end
from sources.loading.prefetch import READER


class FullDisk:
    """An output that cannot be flushed."""

    def __init__(self, path: Path):
        self.file = path.open("wb")

    def flush(self) -> None:
        raise OSError("No space left on device")

    def fileno(self) -> int:
        return self.file.fileno()


def test_the_status_is_handed_on():
    with pytest.raises(SystemExit) as ended:
        end(5)
    assert ended.value.code == 5


def test_an_output_that_fails_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    output = FullDisk(tmp_path / "output")
    monkeypatch.setattr("sys.stdout", output)
    with pytest.raises(SystemExit) as ended:
        end(3)
    assert ended.value.code == 3
    os.write(output.fileno(), b"what the interpreter would write while it ends")
    assert not (tmp_path / "output").read_bytes()


def test_a_thread_that_reads_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    statuses: list[int] = []
    monkeypatch.setattr(os, "_exit", statuses.append)
    read = threading.Event()
    reader = threading.Thread(target=read.wait, name=READER, daemon=True)
    reader.start()
    with pytest.raises(SystemExit):
        end(4)  # which goes on here, since the process does not end
    read.set()
    reader.join()
    assert statuses == [4]
