from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.shard_chain import processes


@pytest.fixture
def start() -> Iterator[Callable]:
    """Starts a process of its own that writes to a cache."""
    with processes() as start:
        yield start


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"
