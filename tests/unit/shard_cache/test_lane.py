import os
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from shard_cache import BLOCKS_PER_SHARD
from storage import digest
from tests.helpers.shard_chain import (
    append,
    assert_equal,
    fill,
    held,
    lane_folder,
    make,
    open_lane,
    open_source,
    states,
)


def shards(folder: Path, number: int = 0) -> list[str]:
    return sorted(path.name for path in lane_folder(folder, number).iterdir())


def test_blocks_come_back_in_any_order(folder: Path):
    lane = open_lane(folder)
    fill(lane, 0, 40)
    assert shards(folder) == [f"{n:06d}.{kind}" for n in (0, 16, 32) for kind in ("json", "tar")]
    assert held(lane, 0, 50) == list(range(40))
    source = open_source(folder)
    again = source.lane(0)
    order = list(states(0, 40))
    random.Random(0).shuffle(order)
    for state in order:
        assert_equal(again.read(state["block"], digest(state)), state)
    assert not source.notices


def test_a_block_is_on_disk_when_its_shard_is_full_or_flushed(folder: Path):
    lane = open_lane(folder)
    for state in states(0, BLOCKS_PER_SHARD + 4):
        append(lane, state)
    assert held(lane, 0, 30) == list(range(20))  # whoever appends reads what is not written yet
    assert held(open_lane(folder), 0, 30) == list(range(16))
    lane.flush()
    lane.flush()
    assert held(open_lane(folder), 0, 30) == list(range(20))


def test_another_process_continues_after_a_short_shard(folder: Path, start):
    assert start(folder, 0, 5).wait(20) == 0
    assert start(folder, 0, 12).wait(20) == 0
    lane = open_lane(folder)
    for state in states(0, 50):
        if lane.read(state["block"], digest(state)) is None:
            append(lane, state)
    lane.flush()
    assert [name for name in shards(folder) if name.endswith("tar")] == [
        f"{first:06d}.tar" for first in (0, 5, 12, 28, 44)
    ]
    assert held(open_lane(folder), 0, 60) == list(range(50))


def test_a_block_is_only_given_for_the_state_before_it(folder: Path):
    lane = open_lane(folder)
    fill(lane, 0, 3)
    first, second, _ = states(0, 3)
    assert lane.read(0, digest(first)) is not None
    assert lane.read(0, digest(second)) is None
    assert lane.read(1, digest(first)) is None


def test_another_chain_finds_its_own_blocks_only(folder: Path):
    lane = open_lane(folder)
    fill(lane, 0, 20)
    fill(lane, 1, 5)  # another chain under the same numbers: its shard takes the place of the first one's
    assert held(open_lane(folder), 1, 20) == [0, 1, 2, 3, 4]
    assert held(open_lane(folder), 0, 20) == [16, 17, 18, 19]


def test_blocks_that_are_there_are_not_written_again(folder: Path):
    fill(open_lane(folder), 0, 20)
    before = {path: path.stat().st_ino for path in lane_folder(folder).iterdir()}
    lane = open_lane(folder)
    fill(lane, 0, 20)
    assert {path: path.stat().st_ino for path in lane_folder(folder).iterdir()} == before


def test_a_gap_begins_a_new_shard(folder: Path):
    lane = open_lane(folder)
    for state in list(states(0, 30))[5:8] + list(states(0, 30))[20:22]:
        append(lane, state)
    lane.flush()
    assert held(open_lane(folder), 0, 30) == [5, 6, 7, 20, 21]


def test_arrays_may_be_changed_after_they_were_appended(folder: Path):
    lane = open_lane(folder)
    (state,) = states(0, 1)
    arrays, after = make(state)
    arrays["ids"] = arrays["ids"].copy()
    lane.append(0, digest(state), arrays, after)
    arrays["ids"][:] = 0
    after["block"] = 99
    assert_equal(lane.read(0, digest(state)), state)


def test_lanes_are_kept_apart(folder: Path):
    for number in range(3):
        fill(open_lane(folder, number), number, 5)
    for number in range(3):
        assert held(open_lane(folder, number), number, 5) == [0, 1, 2, 3, 4]
    assert held(open_lane(folder, 1), 2, 5) == []


def test_swapped_shards_are_noticed_even_when_the_states_agree(folder: Path):
    for number in (0, 1):
        fill(open_lane(folder, number), 0, 16)  # both lanes begin alike
    for name in ("000000.tar", "000000.json"):
        a, b = lane_folder(folder, 0) / name, lane_folder(folder, 1) / name
        a.rename(folder / "kept")
        b.rename(a)
        (folder / "kept").rename(b)
    source = open_source(folder)
    lane = source.lane(0)
    assert held(lane, 0, 16) == []
    (notice,) = source.notices
    assert notice.startswith(f"{lane_folder(folder) / '000000.tar'} is damaged (its sidecar is another shard's); ")


def test_a_shard_under_another_number_is_noticed(folder: Path):
    fill(open_lane(folder), 0, 32)
    for kind in ("tar", "json"):
        shutil.copyfile(lane_folder(folder) / f"000016.{kind}", lane_folder(folder) / f"000000.{kind}")
    source = open_source(folder)
    lane = source.lane(0)
    assert held(lane, 0, 32) == list(range(16, 32))
    assert len(source.notices) == 1


@pytest.mark.parametrize("kind", ["tar", "json"])
def test_every_flipped_bit_is_noticed_or_harmless(folder: Path, kind: str):
    fill(open_lane(folder), 0, 16)
    path = lane_folder(folder) / f"000000.{kind}"
    whole, choose = path.read_bytes(), random.Random(1)
    unnoticed = 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[choose.randrange(len(whole))] ^= 1 << choose.randrange(8)
        path.write_bytes(damaged)
        source = open_source(folder)
        found = held(source.lane(0), 0, 3)  # compares what it reads
        assert len(source.notices) == (0 if found else 1)
        unnoticed += bool(found)
    assert unnoticed == 0 or kind == "json"  # there a changed blank between two values is harmless
    assert unnoticed < 20


@pytest.mark.parametrize("kind", ["tar", "json"])
@pytest.mark.parametrize("length", ["nothing", "one byte", "a quarter", "half", "all but one", "one more", "no file"])
def test_a_damaged_shard_is_reported_once_and_made_again(folder: Path, kind: str, length: str):
    fill(open_lane(folder), 0, 40)
    path = lane_folder(folder) / f"000016.{kind}"
    whole = path.read_bytes()
    lengths = {"nothing": 0, "one byte": 1, "a quarter": len(whole) // 4, "half": len(whole) // 2, "all but one": -1}
    if length == "no file":
        path.unlink()
    else:
        path.write_bytes(whole + b" " if length == "one more" else whole[: lengths[length]])
    source = open_source(folder)
    lane = source.lane(0)
    harmless = kind == "json" and length == "one more"
    rest = [number for number in range(40) if harmless or not 16 <= number < 32]
    assert held(lane, 0, 40) == rest
    assert held(lane, 0, 40) == rest
    without_sidecar = kind == "json" and length == "no file"
    assert len(source.notices) == (0 if harmless or without_sidecar else 1)
    if source.notices:
        assert str(lane_folder(folder) / "000016.tar") in source.notices[0]
        assert "is damaged (" in source.notices[0]
        assert source.notices[0].endswith("it is made again from the source.")
    fill(lane, 0, 40)
    source = open_source(folder)
    again = source.lane(0)
    assert held(again, 0, 40) == list(range(40))
    assert not source.notices
    assert path.read_bytes() in (whole, whole + b" ")


def test_a_damaged_short_shard_alone_is_made_again(folder: Path):
    fill(open_lane(folder), 0, 5)
    fill(open_lane(folder), 0, 30)
    names = shards(folder)
    (lane_folder(folder) / "000000.tar").write_bytes(b"")
    lane = open_lane(folder)
    fill(lane, 0, 30)
    assert shards(folder) == names
    assert held(open_lane(folder), 0, 30) == list(range(30))


def test_skip_leads_past_a_damaged_shard(folder: Path):
    fill(open_lane(folder), 0, 48)
    for name in ("000000.tar", "000016.tar"):
        (lane_folder(folder) / name).write_bytes(b"")
    lane = open_lane(folder)
    state = lane.skip(3)
    assert state == list(states(0, 33))[32]
    assert_equal(lane.read(32, digest(state)), state)
    assert lane.skip(47) is None


def test_skip_leads_into_a_shard_and_past_gaps(folder: Path):
    chain = list(states(0, 30))
    lane = open_lane(folder)
    for state in chain[5:8] + chain[20:22]:
        append(lane, state)
    lane.flush()
    for reader in (lane, open_lane(folder)):
        assert [reader.skip(number) for number in (0, 4, 5, 6)] == [chain[5], chain[5], chain[6], chain[7]]
        assert [reader.skip(number) for number in (7, 19, 20)] == [chain[20], chain[20], chain[21]]
        assert reader.skip(21) is None


def test_skip_needs_the_state_of_a_first_block(folder: Path):
    lane = open_lane(folder)
    chain = list(states(0, 10))
    for state in chain[5:8]:
        arrays, after = make(state)
        lane.append(state["block"], digest(state), arrays, after)
    lane.flush()
    assert open_lane(folder).skip(0) == chain[6]


def test_nothing_is_there_to_skip_to_in_an_empty_lane(folder: Path):
    lane = open_lane(folder)
    assert lane.skip(0) is None
    assert lane.read(0, digest(None)) is None


def test_a_pickled_lane_reads_and_writes_for_itself(folder: Path):
    lane = open_lane(folder)
    chain = list(states(0, 8))
    for state in chain[:5]:
        append(lane, state)
    copy = pickle.loads(pickle.dumps(lane))
    assert held(copy, 0, 8) == []  # what is not on disk stays with the original
    lane.flush()
    assert held(copy, 0, 8) == [0, 1, 2, 3, 4]
    for state in chain[5:]:
        append(copy, state)
    copy.flush()
    assert held(lane, 0, 8) == list(range(8))


@pytest.mark.parametrize("what", ["lane", "source"])
def test_links_out_of_the_cache_are_not_followed(folder: Path, tmp_path: Path, what: str):
    fill(open_lane(folder), 0, 16)
    linked = lane_folder(folder) if what == "lane" else lane_folder(folder).parent
    outside = tmp_path / "outside"
    linked.rename(outside)
    linked.symlink_to(outside)
    there = {path: path.stat().st_mtime_ns for path in outside.rglob("*")}
    source = open_source(folder)
    lane = source.lane(0)
    assert held(lane, 0, 16) == []
    fill(lane, 0, 16)
    assert {path: path.stat().st_mtime_ns for path in outside.rglob("*")} == there
    (notice,) = source.notices
    assert notice.startswith(f"{linked} cannot be written (it is a symbolic link); nothing more is cached in this run")


@pytest.mark.parametrize("kind", ["tar", "json"])
def test_links_in_place_of_files_are_replaced_and_not_followed(folder: Path, tmp_path: Path, kind: str):
    fill(open_lane(folder), 0, 16)
    path = lane_folder(folder) / f"000000.{kind}"
    outside = tmp_path / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    whole = outside.read_bytes()
    source = open_source(folder)
    lane = source.lane(0)
    assert held(lane, 0, 16) == []
    assert "symbolic link" in source.notices[0]
    fill(lane, 0, 16)
    assert held(lane, 0, 16) == list(range(16))
    assert not path.is_symlink()
    assert outside.read_bytes() == whole


@pytest.mark.parametrize("kind", ["tar", "json"])
def test_pipes_and_folders_in_place_of_files_are_damage(folder: Path, kind: str):
    fill(open_lane(folder), 0, 16)
    path = lane_folder(folder) / f"000000.{kind}"
    path.unlink()
    os.mkfifo(path)  # whoever opened it for reading would wait forever
    source = open_source(folder)
    lane = source.lane(0)
    assert held(lane, 0, 16) == []
    assert "not a regular file" in source.notices[0]


def test_blocks_without_rows_are_kept_too(folder: Path):
    lane = open_lane(folder)
    lane.append(0, digest(None), {"ids": np.zeros((0, 64), np.uint16)}, [], begins=None)
    lane.flush()
    block = open_lane(folder).read(0, digest(None))
    assert block.arrays["ids"].shape == (0, 64)
    assert block.after == []
