"""Whether a run survives: killed anywhere, with a failing disk, a lost rank, a folder that is moved, damaged files.

    python -m benchmarks.survival [--quick] [--minutes 25] [--seed 1] [--rows kills,random,...]

Each trial is made of real runs (tests/faults/), and one fork server for each core makes them. Where the minutes do not
suffice for all trials of a row, those made are a random sample, and the row says how many of how many. Needs a C
compiler; the small disk needs root. Leaves with status 1 where a trial failed.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from engine.device import machine
from tests.faults.damage import Archive, Damage
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
from tests.helpers.text import write_topics

Trial = tuple[str, Callable[[Server], list[str]]]  # what is done, and doing it: what went wrong


@dataclass(frozen=True)
class Row:
    figure: str
    aim: str
    trials: list[Trial]
    share: float  # of the time
    quick: int  # trials with --quick


class Rows:
    """The trials, over lineages of one, two and three ranks that are made here."""

    def __init__(self, server: Server, scratch: Path, rng: random.Random):
        self.scratch, self.rng = scratch, rng
        (scratch / "topics").mkdir()
        write_topics(scratch / "topics")
        self.one, self.two, self.three = (
            Lineage(server.run, scratch / "topics", scratch / f"ranks-{ranks}", ranks) for ranks in (1, 2, 3)
        )
        self.calls = self.one.file_calls()
        (scratch / "damage").mkdir()
        self.archive = Archive(self.one.beginning, scratch / "damage")

    def kills(self) -> Row:
        trials = [(str(point), self._killed(point)) for point in points(self.calls)]
        for which in ({"fresh": True}, {"at_step": STEPS}):
            renames = [call for call in self.one.file_calls(**which) if call.kind == "rename"]
            trials += [(f"{point}, {which}", self._killed(point, **which)) for point in points(renames)]
        figure = f"SIGKILL at each of a save's {len(self.calls)} file calls: before, after, within; power lost"
        return Row(figure, "all go on, same bits, at most one save lost", trials, 0.33, 24)

    def random(self) -> Row:
        seeds = [self.rng.random() for _ in range(200)]
        trials = [
            (f"seed {seed}", lambda server, s=seed: killed_at_random(self.one.by(server.run), random.Random(s)))
            for seed in seeds
        ]
        return Row("SIGKILL at random instants of a run", "all go on, same bits", trials, 0.18, 10)

    def disk(self) -> Row:
        trials = [
            (str(fault), lambda server, f=fault: disk_fails(self.one.by(server.run), **f))
            for fault in disk_errors(self.calls)
        ]
        trials += [
            (f"two ranks, {fault}", lambda server, f=fault: disk_fails(self.two.by(server.run), **f))
            for fault in self.rng.sample(list(disk_errors(self.calls)), 40)
        ]
        trials += [
            (f"no file over {size} bytes", lambda server, s=size: disk_fails(self.one.by(server.run), file_size=s))
            for size in range(5_000, 400_000, 20_000)
        ]
        figure = "ENOSPC, EIO, EROFS, short writes at each file call of a save, once or until two saves were tried"
        return Row(figure, "old snapshots identical, run goes on, none hangs", trials, 0.20, 24)

    def small(self) -> Row:
        def trial(server: Server, free: dict[str, int]) -> list[str]:
            with small_disk(Path(tempfile.mkdtemp(dir=self.scratch)) / "disk", megabytes=16, files=100) as disk:
                return disk_fills(self.one.by(server.run), disk, **free)

        cases = [{"free_bytes": 2**10 * size} for size in (0, 100, 300, 700, 1500)]
        cases += [{"free_files": files} for files in range(6)]
        trials = [(str(free), lambda server, f=free: trial(server, f)) for free in cases if os.geteuid() == 0]
        return Row("a tmpfs with so few bytes or files left", "the same", trials, 0.03, 4)

    def ranks(self) -> Row:
        def trial(lineage: Lineage, rank: int, hold: float) -> Callable[[Server], list[str]]:
            after = self.rng.uniform(0, 0.15)
            return lambda server: rank_lost(lineage.by(server.run), rank, after, hold)

        def launched(lineage: Lineage, rank: int, hold: float) -> Callable[[Server], list[str]]:
            return lambda _: rank_lost(lineage.by(torchrun), rank, 0.1, hold)

        trials = []
        for lineage in (self.two, self.three):
            for rank in range(lineage.world_size):
                for hold, where in ((0.4, "a save"), (0.0, "a save or a step")):
                    name = f"rank {rank} of {lineage.world_size} in {where}"
                    trials.append((f"{name}, torchrun", launched(lineage, rank, hold)))
                    trials += [(name, trial(lineage, rank, hold)) for _ in range(4)]
        return Row("SIGKILL of one of 2 or 3 ranks", "all end, none hangs, same bits", trials, 0.12, 4)

    def folder(self) -> Row:
        def trial(lineage: Lineage, number: int, replaced: bool) -> Trial:
            name = f"moved{' and replaced' if replaced else ''} at call {number}, ranks: {lineage.world_size}"
            return name, lambda server: moved(lineage.by(server.run), number, replaced)

        every = [(call.number, replaced) for call in self.calls for replaced in (False, True)]
        trials = [trial(self.one, *point) for point in every]
        trials += [trial(self.two, *point) for point in self.rng.sample(every, 10)]
        trials += [
            (f"removed, ranks: {lineage.world_size}", lambda server, ln=lineage: removed(ln.by(server.run)))
            for lineage in (self.one, self.two, self.three)
        ]
        figure = "the folder moved, or another in its place, at each file call of a save; or removed"
        return Row(figure, "status 5, saved where it went, same bits; the other as it was", trials, 0.1, 16)

    def resume(self) -> Row:
        cases = [(lineage, steps) for lineage in (self.one, self.two) for steps in ((2, 4), (2, 3, 4, 5))]
        trials = [
            (f"{lineage.world_size} ranks, {steps}", lambda server, ln=lineage, s=steps: resumed(ln.by(server.run), s))
            for lineage, steps in cases
        ]
        figure = "resumed 2 and 4 times on 1 and 2 ranks: weights, optimizer, losses, rows"
        return Row(figure, "equal to the bit", trials, 0.02, 2)

    def flips(self) -> Row:
        trials = self._damages(self.archive.flips(1000, self.rng))
        return Row("a flipped bit in a snapshot or a state", "all detected, none loaded", trials, 0.01, 150)

    def damage(self) -> Row:
        every = [damage for kind in self.archive.KINDS for damage in getattr(self.archive, kind)()]
        figure = "zeroed pages, truncations, deletions, swaps, everything damaged"
        return Row(figure, "the newest whole generation, or status 4", self._damages(every), 0.01, 150)

    def _killed(self, point: Point, **which: Any) -> Callable[[Server], list[str]]:
        return lambda server: killed(self.one.by(server.run), point, **which)

    def _damages(self, damages: Iterator[Damage]) -> list[Trial]:
        return [(damage.name, lambda _, d=damage: self.archive.problems(d)) for damage in damages]


def make(row: Row, servers: SimpleQueue, count: int, seconds: float, rng: random.Random) -> tuple[int, list[str]]:
    """How many of a row's trials were made in that time, in a random order, and what went wrong."""
    deadline = time.monotonic() + seconds

    def one(trial: Trial) -> list[str] | None:
        name, run = trial
        server = servers.get()
        try:
            return [f"{name}: {problem}" for problem in run(server)] if time.monotonic() < deadline else None
        finally:
            servers.put(server)

    chosen = rng.sample(row.trials, min(count, len(row.trials)))
    with ThreadPoolExecutor(servers.qsize()) as pool:
        made = [problems for problems in pool.map(one, chosen) if problems is not None]
    return len(made), ["; ".join(problems) for problems in made if problems]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name for name in vars(Rows) if not name.startswith("_")]
    parser.add_argument("--quick", action="store_true", help="some trials of each row")
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", default=",".join(names))
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    print(f"{machine.describe(torch.device('cpu'))}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")
    failed: list[str] = []
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers: SimpleQueue[Server] = SimpleQueue()
        for _ in range(len(os.sched_getaffinity(0))):
            servers.put(stack.enter_context(closing(Server())))
        first = servers.get()
        rows = Rows(first, scratch, rng)
        servers.put(first)
        for name in arguments.rows.split(","):
            row = getattr(rows, name)()
            count = row.quick if arguments.quick else len(row.trials)
            begin = time.monotonic()
            made, problems = make(row, servers, count, row.share * 60 * arguments.minutes, rng)
            print(f"{row.figure}  (aim: {row.aim})")
            seconds = time.monotonic() - begin
            print(
                f"    {made:,} of {len(row.trials):,} trials made, {len(problems)} failed, {seconds:.0f} s", flush=True
            )
            failed += problems
    for problem in failed:
        print(f"FAILED {problem}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
