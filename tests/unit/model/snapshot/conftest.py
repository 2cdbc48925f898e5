"""A snapshot file, and what is said of files that are refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from model.snapshot import SnapshotError, read, write


@pytest.fixture
def path(tmp_path, snapshot) -> Path:
    write(tmp_path / "lm.pth", snapshot)
    return tmp_path / "lm.pth"


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    """Reads a file that must be refused; returns the one sentence that says why."""

    def sentence(path: Path, **options) -> str:
        with pytest.raises(SnapshotError) as caught:
            read(path, **options)
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and message.endswith(".") and "\n" not in message
        return message

    return sentence
