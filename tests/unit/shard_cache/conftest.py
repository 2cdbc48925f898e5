"""Processes of their own that write to a cache."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.text import REPOSITORY

Start = Callable[..., subprocess.Popen]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start `python -m tests.shard_cache.chain` (or `python -c CODE`) with arguments; none outlives the test."""
    started = []

    def begin(*arguments: object, code: str | None = None, wrapper: tuple[str, ...] = ()) -> subprocess.Popen:
        program = ["-c", code] if code else ["-m", "tests.helpers.shard_chain"]
        command = [*wrapper, sys.executable, *program, *map(str, arguments)]
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"
