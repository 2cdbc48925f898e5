"""What can happen to a run: it is killed, a rank is lost, the disk fails, its folder is moved.

Each function returns what went wrong.
"""

import contextlib
import errno
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint.folder import CURRENT, PREV
from engine.errors import FolderMoved
from engine.events import read
from tests.faults import CHANGES, GROWTH, Action, Call
from tests.faults.damage import tree
from tests.faults.lineage import NAMES, STEPS, Lineage, Trial, duplicate, lose_unsynced


@dataclass(frozen=True)
class Point:
    """A place in a save at which a process ends; with `power_loss` unsynced bytes are lost too."""

    number: int
    action: Action = Action.KILL_BEFORE
    power_loss: bool = False


def points(calls: list[Call]) -> list[Point]:
    """Before each call; after each call that changes something, and in the middle of each write; power losses."""
    changes = [call.number for call in calls if call.kind in CHANGES]
    writes = [call.number for call in calls if call.kind == "write"]
    return [
        *(Point(call.number) for call in calls),
        *(Point(number, Action.KILL_AFTER) for number in changes),
        *(Point(number, Action.KILL_HALFWAY) for number in writes),
        *(Point(number, power_loss=True) for number in changes),
    ]


def killed(lineage: Lineage, point: Point, **options: Any) -> list[str]:
    """A run that is killed at a file call of its first save, and goes on. `options` are those of `Lineage.trial`."""
    trial = lineage.trial(action=point.action, number=point.number, **options)
    if -9 not in trial.outcome.statuses:
        problems = [f"call {point.number} never came: {trial.outcome}"]
    else:
        if point.power_loss:
            lose_unsynced(trial.folder, trial.calls)
        problems = lineage.go_on(trial)
    trial.remove()
    return problems


def killed_at_random(lineage: Lineage, rng: random.Random) -> list[str]:
    """A run from nothing that is killed at one or more random instants, and goes on."""
    trial = lineage.trial(fresh=True, kill_after=rng.uniform(0, lineage.seconds))
    while rng.random() < 0.3 and all(line["step"] < STEPS for line in trial.saves) and trial.outcome.statuses == [-9]:
        trial = lineage.trial(folder=trial.folder, kill_after=rng.uniform(0, lineage.seconds))
    problems = lineage.go_on(trial)
    trial.remove()
    return problems


def resumed(lineage: Lineage, steps: Sequence[int]) -> list[str]:
    """A run from nothing that is killed in the saves of these steps, against one that is not: every step's loss and
    rows, and all that is in the end."""
    whole = lineage.trial(fresh=True, rows=True)
    legs = [lineage.trial(fresh=True, rows=True, at_step=steps[0], action=Action.KILL_BEFORE, number=1)]
    for step in [*steps[1:], None]:
        fault = {"at_step": step, "action": Action.KILL_BEFORE, "number": 1} if step else {}
        legs.append(lineage.trial(folder=legs[0].folder, rows=True, **fault))
    problems = lineage.compare(legs[0].folder)
    if len(resumes := [e for e in read(legs[0].folder) if e["event"] == "resume"]) != len(steps):
        problems.append(f"resumed {len(resumes)} times")
    seen, truth = _history(legs), _history([whole])
    for step in truth:
        if seen.get(step) != truth[step]:
            problems.append(f"step {step} had loss and rows {seen.get(step)} and not {truth[step]}")
    for trial in (whole, legs[0]):
        trial.remove()
    return problems


def _history(legs: list[Trial]) -> dict[int, set[tuple[float, tuple[str, ...]]]]:
    """By step: its loss and the digests of its rows, of every time that it was made."""
    runs: list[list[dict[str, Any]]] = []
    for event in read(legs[0].folder):
        if event["event"] == "run":
            runs.append([])
        elif event["event"] == "step":
            runs[-1].append(event)
    history: dict[int, set[tuple[float, tuple[str, ...]]]] = {}
    for leg, events in zip(legs, runs, strict=True):
        for event, rows in zip(events, leg.rows, strict=False):  # the last batch may have come to no step
            history.setdefault(event["step"], set()).add((event["loss"], rows))
    return history


def rank_lost(lineage: Lineage, rank: int, kill_after: float, hold: float = 0.0) -> list[str]:
    """One rank is killed some seconds after a save began, which rests for `hold` seconds; the others must end too."""
    trial = lineage.trial(kill_ranks=(rank,), kill_in_save=True, kill_after=kill_after, hold=hold)
    problems = _hung(trial) or lineage.go_on(trial)
    if not any(trial.outcome.statuses):
        problems = [f"rank {rank} was not killed in time: {trial.outcome}"]
    trial.remove()
    return problems


def disk_fails(lineage: Lineage, folder: Path | None = None, **fault: Any) -> list[str]:
    """Saves fail for a while. The old snapshots stay as they are, the run trains to its end, a later save succeeds.

    A disk that takes some of a rotation's renames and then none, not even those that would undo them, is the one
    exception: there the oldest snapshot may lose its name.
    """
    trial = lineage.trial(folder=folder, **fault)
    problems = _hung(trial)
    if any(trial.outcome.statuses):
        problems.append(f"the run ended with {trial.outcome.statuses}: {trial.output[-1000:]}")
    begun = {line["save"]: line["files"] for line in trial.saves if line["event"] == "begin"}
    failed = {line["save"] for line in trial.saves if line["event"] == "failed"}
    for number, files in begun.items():
        after = begun.get(number + 1)
        if after is None:
            continue
        changed = [name for name, digest in files.items() if after.get(name) != digest]
        if number in failed and changed and not (trial.stuck and _only_the_oldest_is_gone(files, after)):
            problems.append(f"save {number} failed and changed or removed {changed}")
        if number not in failed and after[PREV] != files[CURRENT]:
            problems.append(f"save {number} succeeded, and what was {CURRENT} is not {PREV}")
    problems = problems or lineage.compare(trial.folder)
    trial.remove()
    return problems


def _only_the_oldest_is_gone(files: dict[str, str], after: dict[str, str]) -> bool:
    """Whether nothing but the three names has changed, and the two newest of the snapshots still have one."""
    moved = [name for name in files if after.get(name) != files[name]]
    return set(moved) <= set(NAMES) and {files[CURRENT], files[PREV]} <= {after.get(name) for name in NAMES}


def disk_errors(calls: list[Call]) -> Iterator[dict[str, Any]]:
    """A fault for each call of a save: from it on the disk is full, read-only or fails until two saves were tried; or
    it alone fails; or a write is cut short."""

    def each(action: Action, error: int, kinds: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        for number in range(1, sum(call.kind in kinds for call in calls) + 1):
            yield {"action": action, "number": number, "error": error, "kinds": kinds, "for_saves": 2}

    for error, kinds in ((errno.ENOSPC, GROWTH), (errno.EROFS, CHANGES), (errno.EIO, ("write", "sync"))):
        yield from each(Action.FAIL_ON, error, kinds)
        yield from each(Action.FAIL_ONCE, error, kinds)
    yield from each(Action.FAIL_ONCE, errno.EIO, ("read",))
    yield from each(Action.WRITE_SHORT, 0, ("write",))


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int, files: int) -> Iterator[Path]:
    """A tmpfs of that many megabytes and files. Needs root."""
    folder.mkdir(parents=True)
    options = f"size={megabytes}m,nr_inodes={files},mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()


def disk_fills(lineage: Lineage, disk: Path, **free: int) -> list[str]:
    """`disk_fails` on a small disk that is full but for some bytes or files, until two saves were tried."""
    duplicate(lineage.beginning, disk / "checkpoints")
    return disk_fails(lineage, disk / "checkpoints", filler=str(disk / "filler"), for_saves=2, **free)


def moved(lineage: Lineage, number: int, replaced: bool) -> list[str]:
    """The folder is moved at a file call of a save; with `replaced` another lineage's has its name from then on.

    The run saves where its folder went, and ends; nothing is written under the old name.
    """
    folder = lineage.scratch / f"moved-{next(lineage.numbers)}"
    other, went = (folder.with_name(f"{folder.name}-{name}") for name in ("other", "moved"))
    for copied in (folder, other) if replaced else (folder,):
        duplicate(lineage.beginning, copied)
    before = tree(other) if replaced else {}
    trial = lineage.trial(folder=folder, action=Action.MOVE, number=number)
    problems = _hung(trial) or _stopped(trial, went)
    if tree(folder) != before or (folder.exists() and not replaced):
        problems.append("something was written under the old name")
    shutil.rmtree(folder, ignore_errors=True)
    went.rename(folder)
    problems = problems or lineage.go_on(trial)
    trial.remove()
    return problems


def removed(lineage: Lineage) -> list[str]:
    """The folder is removed when a save begins. The run saves into a new one of its name, and ends."""
    trial = lineage.trial(fresh=True, at_step=2, remove=True)
    problems = _hung(trial) or _stopped(trial, trial.folder) or lineage.go_on(trial)
    trial.remove()
    return problems


def _stopped(trial: Trial, folder: Path) -> list[str]:
    """What is wrong with a run that had to stop because its folder was moved, and to save to `folder`."""
    if trial.outcome.statuses != [FolderMoved.status] * trial.job.world_size:
        return [f"it ended with {trial.outcome.statuses}: {trial.output[-1000:]}"]
    if f"saved to {folder / CURRENT}." not in trial.output:
        return [f"it does not say that it saved to {folder}: {trial.output[-1000:]}"]
    return []


def _hung(trial: Trial) -> list[str]:
    return [f"it hung: {trial.output[-1000:]}"] if trial.outcome.hung else []
