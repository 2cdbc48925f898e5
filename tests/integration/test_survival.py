"""Real runs that are killed, lose a rank or their disk, or find their files damaged: tests/faults/ does it to them.

These are samples: `python -m benchmarks.survival` goes through every point.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import faults
from tests.faults import Action
from tests.faults.damage import Archive, tree
from tests.faults.lineage import STEPS, Lineage
from tests.faults.server import Server, torchrun
from tests.faults.trials import (
    Point,
    disk_errors,
    disk_fails,
    disk_fills,
    killed,
    killed_at_random,
    moved,
    points,
    rank_lost,
    removed,
    resumed,
    small_disk,
)

pytestmark = pytest.mark.skipif(faults.COMPILER is None, reason="tests/faults/faults.c needs a C compiler")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def lineage(server: Server, topics_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Lineage:
    return Lineage(server.run, topics_folder, tmp_path_factory.mktemp("survival"))


@pytest.fixture(scope="module")
def two_ranks(server: Server, topics_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Lineage:
    return Lineage(server.run, topics_folder, tmp_path_factory.mktemp("two"), world_size=2)


@pytest.fixture(scope="module")
def calls(lineage: Lineage) -> list[faults.Call]:
    return lineage.file_calls()


@pytest.fixture(scope="module")
def archive(lineage: Lineage, tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return Archive(lineage.beginning, tmp_path_factory.mktemp("damage"))


# Kills


@pytest.mark.parametrize(
    ("action", "power_loss"),
    [(Action.KILL_BEFORE, False), (Action.KILL_AFTER, False), (Action.KILL_HALFWAY, False), (Action.KILL_BEFORE, True)],
    ids=["before", "after", "within", "with power"],
)
def test_killed_at_a_file_call_a_run_goes_on_to_the_same_bits(
    lineage: Lineage, calls: list[faults.Call], action: Action, power_loss: bool
):
    assert {"create", "write", "sync", "rename"} <= {call.kind for call in calls}
    every = [point for point in points(calls) if (point.action, point.power_loss) == (action, power_loss)]
    for point in random.Random(1).sample(every, 3):
        assert killed(lineage, point) == [], point


@pytest.mark.parametrize("which", [{"fresh": True}, {"at_step": STEPS}], ids=["first", "last"])
def test_killed_in_the_first_or_last_save_it_comes_to_the_same(lineage: Lineage, which: dict):
    renames = [call.number for call in lineage.file_calls(**which) if call.kind == "rename"]
    for number in (renames[0], renames[-1]):
        assert killed(lineage, Point(number, Action.KILL_AFTER), **which) == []


def test_what_gets_a_name_was_synced_before_and_the_folder_after(calls: list[faults.Call]):
    """What a power failure must not separate; a SIGKILL alone would not tell."""
    unsynced, renamed = set(), set()
    for call in calls:
        if call.kind == "write" and call.path.name != "metrics.jsonl":
            unsynced.add(call.inode)
        elif call.kind == "sync":
            unsynced.discard(call.inode)
            renamed = {path for path in renamed if path.parent != call.path}
        elif call.kind == "rename":
            assert call.inode not in unsynced, call
            renamed.add(call.new_path)
    assert not unsynced and not renamed


@pytest.mark.slow
def test_killed_at_any_instant_a_run_goes_on_to_the_same_bits(lineage: Lineage):
    rng = random.Random(2)
    for number in range(6):
        assert killed_at_random(lineage, rng) == [], number


@pytest.mark.parametrize("steps", [pytest.param((2, 4), marks=pytest.mark.slow), (2, 3, 4, 5)])
def test_resumed_several_times_every_loss_and_row_is_the_same(lineage: Lineage, steps: tuple[int, ...]):
    assert resumed(lineage, steps) == []


# The disk


def test_a_disk_that_fails_costs_no_snapshot_and_no_step(lineage: Lineage, calls: list[faults.Call]):
    """One that is full, read-only or broken, for one call or from then on; one that writes less than it is asked to."""
    kinds: dict[tuple, list[dict]] = {}
    for fault in disk_errors(calls):
        kinds.setdefault((fault["action"], fault["error"], fault["kinds"]), []).append(fault)
    assert len(kinds) == 8
    for number, faults_of_a_kind in enumerate(kinds.values()):
        fault = random.Random(number).choice(faults_of_a_kind)
        assert disk_fails(lineage, **fault) == [], fault


@pytest.mark.parametrize("limit", [5_000, 50_000, 250_000])
def test_a_file_that_may_not_grow_costs_no_snapshot_and_no_step(lineage: Lineage, limit: int):
    assert disk_fails(lineage, file_size=limit, for_saves=2) == []


def test_an_output_on_a_full_disk_costs_nothing(lineage: Lineage):
    assert disk_fails(lineage, output="/dev/full") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a tmpfs")
def test_a_small_disk_that_is_full_costs_no_snapshot_and_no_step(lineage: Lineage, tmp_path: Path):
    for free in ({"free_bytes": 0}, {"free_bytes": 300_000}, {"free_files": 0}, {"free_files": 1}, {"free_files": 3}):
        with small_disk(tmp_path / "disk", megabytes=16, files=100) as disk:
            assert disk_fills(lineage, disk, **free) == [], free


def test_two_ranks_train_on_while_the_disk_of_the_first_fails(two_ranks: Lineage, calls: list[faults.Call]):
    for fault in random.Random(4).sample(list(disk_errors(calls)), 3):
        assert disk_fails(two_ranks, **fault) == [], fault


# The folder


@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_that_is_moved_in_a_save_has_all_that_was_trained(
    lineage: Lineage, calls: list[faults.Call], replaced: bool
):
    renames = [call.number for call in calls if call.kind == "rename"]
    for number in (random.Random(7).choice(calls).number, renames[0], renames[-1]):
        assert moved(lineage, number, replaced) == [], number


def test_two_ranks_stop_together_when_their_folder_is_moved(two_ranks: Lineage, calls: list[faults.Call]):
    assert moved(two_ranks, random.Random(8).choice(calls).number, replaced=True) == []


def test_a_folder_that_is_removed_costs_no_step(lineage: Lineage):
    assert removed(lineage) == []


# Lost ranks


@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_rank_ends_the_other_and_a_restart_goes_on(two_ranks: Lineage, rank: int):
    assert rank_lost(two_ranks, rank, kill_after=0.1, hold=0.3) == [], "in a save"


@pytest.mark.slow
def test_a_rank_may_be_lost_in_a_step_too(two_ranks: Lineage):
    assert rank_lost(two_ranks, rank=1, kill_after=0.05) == [], "in a save or a step"


@pytest.mark.slow
def test_under_torchrun_a_lost_rank_ends_all(two_ranks: Lineage):
    assert rank_lost(two_ranks.by(torchrun), rank=1, kill_after=0.1, hold=0.3) == []


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_under_torchrun_any_rank_may_be_lost(server: Server, topics_folder: Path, tmp_path: Path, world_size: int):
    lineage = Lineage(server.run, topics_folder, tmp_path, world_size).by(torchrun)
    rng = random.Random(world_size)
    for rank in range(world_size):
        assert rank_lost(lineage, rank, kill_after=0.1, hold=0.3) == [], f"rank {rank} in a save"
        assert rank_lost(lineage, rank, kill_after=rng.uniform(0, 0.3)) == [], f"rank {rank} in a save or a step"


# Damage


def test_a_flipped_bit_is_always_detected(archive: Archive):
    for damage in archive.flips(150, random.Random(5)):
        assert archive.problems(damage) == [], damage.name


@pytest.mark.parametrize("kind", Archive.KINDS)
def test_the_newest_whole_generation_is_used_or_none(archive: Archive, kind: str):
    every = list(getattr(archive, kind)())
    for damage in random.Random(6).sample(every, min(40, len(every))):
        assert archive.problems(damage) == [], damage.name


def test_a_run_that_can_trust_nothing_ends_and_touches_nothing(lineage: Lineage, archive: Archive):
    for damage in archive.total():
        folder = archive.scratch / "checkpoints"
        archive.make(damage, folder)
        before = tree(folder)
        trial = lineage.trial(folder=folder)
        assert trial.outcome.statuses == [4] and "nothing was changed" in trial.output
        assert tree(folder) == before
        trial.remove()
