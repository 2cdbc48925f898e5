"""A chain of blocks of real text, each a function of the state before it alone, as sources make them.

Run as a program, it appends blocks to a cache in a process of its own (FOLDER LANE BLOCKS [MAX_GB]) and prints the
cache's notices.
"""

import contextlib
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

from shard_cache import CachedBlock, CachedLane, CachedSource, ShardCache
from storage import JSON, digest
from tests.helpers.text import REPOSITORY

TEXT = "".join(topics[name] for name in sorted(topics)).encode()
FINGERPRINT = {"tokenizer": "bytes", "seq_length": 64}
SHAPE = (8, 64)


def beginning(lane: int) -> JSON:
    return {"block": 0, "offset": 10_000 * lane, "carry": ""}


def make(state: JSON) -> tuple[dict[str, np.ndarray], JSON]:
    """The block after `state`, and the state after it."""
    start, size = state["offset"], SHAPE[0] * SHAPE[1]
    ids = np.frombuffer(TEXT[start : start + size], dtype=np.uint8).astype(np.uint16).reshape(SHAPE)
    ends = np.flatnonzero(ids == ord("\n")).astype(np.int32)  # of another length in each block
    offset = (start + size) % (len(TEXT) - size)
    carry = TEXT[offset : offset + 100].decode(errors="replace")
    return {"ids": ids, "ends": ends}, {"block": state["block"] + 1, "offset": offset, "carry": carry}


def states(lane: int, count: int) -> Iterator[JSON]:
    state = beginning(lane)
    for _ in range(count):
        yield state
        state = make(state)[1]


def append(lane: CachedLane, state: JSON) -> None:
    arrays, after = make(state)
    lane.append(state["block"], digest(state), arrays, after, begins=state)


def fill(lane: CachedLane, number: int, count: int) -> None:
    """Append the first `count` blocks of lane `number` and write them."""
    for state in states(number, count):
        append(lane, state)
    lane.flush()


def held(lane: CachedLane, number: int, count: int) -> list[int]:
    """Which of the first `count` blocks of lane `number` can be read; each is compared with what it must be."""
    found = []
    for state in states(number, count):
        block = lane.read(state["block"], digest(state))
        if block is not None:
            assert_equal(block, state)
            found.append(state["block"])
    return found


def assert_equal(block: CachedBlock, state: JSON) -> None:
    arrays, after = make(state)
    assert block.after == after
    assert block.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(block.arrays[name], array)
        assert block.arrays[name].dtype == array.dtype


def open_source(folder: Path, max_gb: float = 1.0, name: str = "python/topics") -> CachedSource:
    return ShardCache(folder, max_gb).source({**FINGERPRINT, "name": name}, {"dataset": name}, {"revision": 1})


def open_lane(folder: Path, number: int = 0) -> CachedLane:
    return open_source(folder).lane(number)


def lane_folder(folder: Path, number: int = 0) -> Path:
    (found,) = folder.glob(f"*/lane-{number:04d}")
    return found


@contextlib.contextmanager
def processes() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Gives a function that starts this program, or `python -c CODE`, with arguments; all end with the block."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object, code: str | None = None) -> subprocess.Popen[str]:
        program = ["-c", code] if code else ["-m", "tests.helpers.shard_chain"]
        command = [sys.executable, *program, *map(str, arguments)]
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.communicate()


if __name__ == "__main__":
    folder, number, count, *max_gb = sys.argv[1:]
    sys.modules["torch"] = None  # webdataset then loads in a moment
    importlib.import_module("webdataset")  # before anybody takes the time
    source = open_source(Path(folder), *map(float, max_gb))
    print("open", flush=True)
    fill(source.lane(int(number)), int(number), int(count))
    print(*source.notices, sep="\n")
