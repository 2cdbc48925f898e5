import gc
import os
import pickle
import threading
import time
from pathlib import Path

import pytest

from shard_cache import ShardCache, space
from tests.helpers.shard_chain import fill, held, open_source

SHARD = 80_000  # bytes: a little more than a shard of this chain's 16 blocks with its sidecar


def age(source_folder: Path, seconds: int) -> None:
    os.utime(source_folder / "used", (1_700_000_000 - seconds,) * 2)


def filled(folder: Path, name: str, age_seconds: int, blocks: int = 16) -> Path:
    """A source's folder that was used some time ago, and is not now."""
    source = open_source(folder, name=name)
    fill(source.lane(0), 0, blocks)
    path = source.folder
    del source
    gc.collect()
    age(path, age_seconds)
    return path


def used(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_least_recently_used_go_first(folder: Path):
    old, oldest, recent = (filled(folder, name, seconds) for name, seconds in (("b", 20), ("a", 30), ("c", 10)))
    shard = used(old)
    source = open_source(folder, max_gb=3.5 * shard / 1e9, name="new")
    fill(source.lane(0), 0, 16)
    assert [path.exists() for path in (oldest, old, recent)] == [False, True, True]
    assert source.notices == [
        f"{oldest} was removed from the cache, as the least recently used, to stay under cache_max_gb."
    ]
    fill(source.lane(1), 1, 16)
    assert [path.exists() for path in (oldest, old, recent)] == [False, False, True]
    assert used(folder) <= 3.5 * shard
    assert held(source.lane(0), 0, 16) == list(range(16))


def test_many_processes_share_one_limit(folder: Path):
    """Each knows what it wrote and what it measured, as a process does; they write in turn."""
    limit, size, number = 6_400_000, 10_000, 32
    spaces = [space.Space(folder, limit / 1e9) for _ in range(number)]
    (folder / "a").mkdir(parents=True)
    for turn in range(2 * limit // size):
        writer = turn % number
        if not spaces[writer].stopped and spaces[writer].take(size):
            (folder / "a" / str(turn)).write_bytes(bytes(size))
    assert all(each.stopped for each in spaces)
    assert 0.9 * limit < used(folder) <= limit + number * size


def test_using_a_source_makes_it_the_most_recent(folder: Path):
    first, second = filled(folder, "a", 30), filled(folder, "b", 20)
    open_source(folder, name="a")
    gc.collect()
    source = open_source(folder, max_gb=2.5 * used(first) / 1e9, name="new")
    fill(source.lane(0), 0, 16)
    assert [first.exists(), second.exists()] == [True, False]


def test_when_all_is_in_use_writing_stops_and_reading_goes_on(folder: Path):
    path = filled(folder, "a", 30)
    kept = open_source(folder, name="a")
    limit = 2.5 * used(path)
    source = open_source(folder, max_gb=limit / 1e9, name="new")
    lane = source.lane(0)
    fill(lane, 0, 100)
    assert len(source.notices) == 1
    assert source.notices[0].startswith("The cache has reached cache_max_gb (")
    assert used(folder) <= limit
    assert held(lane, 0, 100) == list(range(16))
    assert held(kept.lane(0), 0, 16) == list(range(16))


def test_a_folder_that_a_process_uses_stays_until_it_ends(folder: Path, start):
    path = filled(folder, "python/topics", 30)
    process = start(folder, code=OPEN)
    assert process.stdout.readline() == "open\n"
    age(path, 30)
    source = open_source(folder, max_gb=1.5 * used(path) / 1e9, name="new")
    fill(source.lane(0), 0, 16)
    assert path.exists() and "all of it in use" in source.notices[0]
    process.kill()  # without a chance to say that it ends
    process.wait(20)
    source = open_source(folder, max_gb=1.5 * used(path) / 1e9, name="new")
    fill(source.lane(0), 0, 16)
    assert not path.exists()
    assert held(source.lane(0), 0, 16) == list(range(16))


OPEN = """
import sys, time
from pathlib import Path
from tests.helpers.shard_chain import open_source
lane = open_source(Path(sys.argv[1])).lane(0)
print("open", flush=True)
time.sleep(60)
"""


def test_a_pickled_copy_keeps_its_folder(folder: Path):
    path = filled(folder, "a", 30)
    lane = pickle.loads(pickle.dumps(open_source(folder, name="a").lane(0)))
    gc.collect()
    source = open_source(folder, max_gb=1.5 * used(path) / 1e9, name="new")
    fill(source.lane(0), 0, 16)
    assert held(lane, 0, 16) == list(range(16))
    del lane
    gc.collect()
    source = open_source(folder, max_gb=1.5 * used(path) / 1e9, name="new")
    fill(source.lane(0), 0, 16)
    assert not path.exists()


def test_remembered_files_count_and_go_too(folder: Path):
    cache = ShardCache(folder, 1)
    path = cache.remember("held-out.pt")
    path.write_bytes(bytes(SHARD))
    age(path.parent, 30)
    source = open_source(folder, max_gb=1.2 * SHARD / 1e9)
    fill(source.lane(0), 0, 16)
    assert path.exists() and "all of it in use" in source.notices[0]
    del cache
    gc.collect()
    source = open_source(folder, max_gb=1.2 * SHARD / 1e9)
    fill(source.lane(0), 0, 16)
    assert not path.exists()
    assert held(source.lane(0), 0, 16) == list(range(16))


def test_files_of_others_count_and_stay(folder: Path, tmp_path: Path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "file").write_bytes(bytes(10 * SHARD))
    ShardCache(folder, 1)
    for name in ("notes", "theirs-0123456789abcdef", "used"):  # whatever they are called
        (folder / name).mkdir()
    (folder / "notes" / "file").write_bytes(bytes(SHARD))
    (folder / "notes" / "used").write_bytes(b"")
    (folder / "link").symlink_to(theirs)  # what lies behind a link does not count
    source = open_source(folder, max_gb=3 * SHARD / 1e9)
    fill(source.lane(0), 0, 16)
    assert not source.notices
    fill(source.lane(1), 0, 100)
    assert "cache_max_gb" in source.notices[0]
    assert (folder / "notes" / "file").exists() and (theirs / "file").exists()
    assert (folder / "theirs-0123456789abcdef").exists() and (folder / "used").exists()


def test_a_removal_that_was_cut_short_is_finished(folder: Path):
    path = filled(folder, "a", 0)
    path.rename(folder / ".removed-0123456789abcdef")
    (folder / ".removed-by-hand").mkdir()
    ShardCache(folder, 1)
    assert sorted(path.name for path in folder.iterdir()) == [".removed-by-hand", "CACHEDIR.TAG"]


def test_opening_and_removing_at_the_same_time(folder: Path):
    """Whoever holds a folder finds its stamp in place, however often others remove it in between."""
    cache = ShardCache(folder, 1)
    stop = threading.Event()
    removed = []

    def remove() -> None:
        while not stop.is_set():
            for path in space.entries(folder):
                removed.append(space._remove(path))

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        for number in range(300):
            if number % 50 == 0:
                time.sleep(0.01)  # now and then nobody holds it for long
            entry = space.CacheEntry(folder / "entry-0123456789abcdef")
            entry.hold()
            (entry.folder / "file").write_bytes(b"mine")
            assert (entry.folder / "used").exists()
            assert (entry.folder / "file").read_bytes() == b"mine"
            del entry
    finally:
        stop.set()
        thread.join()
    assert any(removed) and not cache.notices


def test_the_last_of_the_disk_is_left_to_checkpoints(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(space, "RESERVE_BYTES", 2**60)
    source = open_source(folder)
    lane = source.lane(0)
    fill(lane, 0, 40)
    assert held(lane, 0, 40) == []
    assert len(source.notices) == 1 and "kept free for checkpoints" in source.notices[0]
