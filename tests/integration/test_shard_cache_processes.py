"""Several processes on one cache, processes that are killed, and disks that take no more."""

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.shard_chain import fill, held, lane_folder, open_lane, open_source, processes
from tests.helpers.text import REPOSITORY


@pytest.fixture
def start() -> Iterator[Callable]:
    """Starts a process of its own that writes to a cache."""
    with processes() as start:
        yield start


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_a_killed_writer_leaves_only_whole_blocks(folder: Path, start):
    choose, lengths = random.Random(0), []
    for _ in range(5):
        process = start(folder, 0, 100_000)
        assert process.stdout.readline() == "open\n"
        time.sleep(choose.uniform(0.0, 0.4))
        process.kill()
        process.wait(20)
        source = open_source(folder)
        found = held(source.lane(0), 0, 1000)  # compares each
        assert found == list(range(len(found)))
        assert not source.notices
        assert not list(folder.rglob(".writing-*"))  # opening sweeps
        lengths.append(len(found))
    assert lengths == sorted(lengths) and (lengths[-1] > lengths[0] or lengths[0] == 1000)


def test_readers_never_see_a_wrong_block_while_it_is_written(folder: Path, start):
    writer = start(folder, 0, 240)
    assert writer.stdout.readline() == "open\n"
    source = open_source(folder)
    while writer.poll() is None:
        held(source.lane(0), 0, 300)  # compares each; a shard may appear behind the place where it reads
    assert not source.notices
    assert held(source.lane(0), 0, 300) == list(range(240))


def test_several_writers_of_one_lane_make_one_chain(folder: Path, start):
    counts = [160, 150, 37]  # shards that begin alike and end differently
    writers = [start(folder, 0, count) for count in counts]
    for writer in writers:
        out, errors = writer.communicate(timeout=60)
        assert (writer.returncode, out.strip()) == (0, "open"), errors
    source = open_source(folder)
    found = held(source.lane(0), 0, 200)
    fill(source.lane(0), 0, 160)
    assert held(source.lane(0), 0, 200) == list(range(160))
    assert not source.notices
    assert len(found) > 100  # a writer that finds another at work leaves a gap, and somebody fills it later


def test_two_processes_write_two_lanes_under_one_limit(folder: Path, start):
    limit = 1_000_000
    writers = [start(folder, lane, 400, limit / 1e9) for lane in (0, 1)]
    for writer in writers:
        out, errors = writer.communicate(timeout=60)
        assert writer.returncode == 0, errors
        assert out.count("cache_max_gb") == 1
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < limit * 1.1
    assert sum(len(held(open_lane(folder, lane), lane, 400)) for lane in (0, 1)) > 150


LIMITED = """
import resource, sys
from pathlib import Path
from tests.helpers.shard_chain import fill, held, open_source
source = open_source(Path(sys.argv[1]))
lane = source.lane(0)
fill(lane, 0, 16)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
fill(lane, 0, 100)
print(held(lane, 0, 100) == list(range(16)), len(source.notices), *source.notices)
"""


def test_a_file_size_limit_stops_the_writing_and_not_the_run(folder: Path, start):
    out, errors = start(folder, code=LIMITED).communicate(timeout=30)
    assert out.startswith("True 1 "), errors
    assert "cannot be written (File too large); nothing more is cached in this run" in out
    assert not list(folder.rglob(".writing-*"))


FULL = """
import sys
from pathlib import Path
from shard_cache import space
from tests.helpers.shard_chain import fill, held, open_source
space.RESERVE_BYTES = -(2**60)
folder = Path(sys.argv[1]) / "store"
source = open_source(folder)
lane = source.lane(0)
fill(lane, 0, 2000)
found = held(lane, 0, 2000)
print(found == list(range(len(found))), len(found) > 100, len(list(folder.rglob(".writing-*"))), *source.notices)
"""

READ_ONLY = """
import subprocess, sys
from pathlib import Path
from shard_cache import space
from tests.helpers.shard_chain import fill, held, open_lane, open_source
space.RESERVE_BYTES = -(2**60)
folder = Path(sys.argv[1]) / "store"
fill(open_lane(folder), 0, 16)
subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
source = open_source(folder)
lane = source.lane(0)
print(held(lane, 0, 16) == list(range(16)), len(source.notices))
fill(lane, 0, 100)
print(len(source.notices), *source.notices)
"""


@pytest.fixture
def on_small_disk(tmp_path: Path):
    """Run a program with a disk of 4 MB that only it sees."""
    mount = 'mount -t tmpfs -o size=4m none "$0" && exec "$@"'
    isolated = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, str(tmp_path)]

    def run(code: str) -> str:
        try:
            allowed = subprocess.run([*isolated, "true"], capture_output=True, timeout=20).returncode == 0
        except FileNotFoundError:
            allowed = False
        if not allowed:
            pytest.skip("this machine lets nobody mount a small disk")
        command = [*isolated, sys.executable, "-c", code, str(tmp_path)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_a_full_disk_stops_the_writing_and_not_the_run(on_small_disk):
    out = on_small_disk(FULL)
    assert out.startswith("True True 0 ")
    assert out.count("cannot be written (the disk is full); nothing more is cached in this run") == 1


def test_a_read_only_disk_is_read(on_small_disk):
    first, second = on_small_disk(READ_ONLY).splitlines()
    assert first == "True 0"
    assert second.startswith("1 ") and "Read-only file system" in second


def test_a_cache_that_is_deleted_under_a_run_stops_nothing(folder: Path):
    source = open_source(folder)
    lane = source.lane(0)
    fill(lane, 0, 16)
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    fill(lane, 0, 16)
    assert held(lane, 0, 16) == list(range(16))
    assert lane_folder(folder).is_dir()
