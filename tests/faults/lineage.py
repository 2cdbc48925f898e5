"""A lineage of three real generations to break, and what every run that goes on from one must come to.

A `Lineage` trains once undisturbed, which is the truth, and once until three generations are saved, which is where each
trial begins. `trial` runs on from a copy of those with a fault; `go_on` starts again, and tells what is wrong with what
came of it.
"""

import copy
import itertools
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint.folder import CURRENT, PREV, PREV2, RestoredCheckpoint
from model.snapshot import file as snapshots
from tests.faults import Action, Call, read_log
from tests.faults.worker import Job, Outcome, read_record
from tests.helpers.folders import equal, events_of, newest
from tests.helpers.training import TOKENS_PER_STEP, tiny_values

SAVED, STEPS = 3, 6  # steps at which a trial begins, and of a whole run; every step ends with a save
NAMES = (CURRENT, PREV, PREV2)
PROGRESS = ("run", "step", "tokens_in_run", "tokens_total", "evaluation")


@dataclass
class Trial:
    """A run with a fault, and how it ended."""

    job: Job
    outcome: Outcome

    @property
    def folder(self) -> Path:
        return Path(self.job.folder)

    @property
    def calls(self) -> list[Call]:
        return read_log(Path(self.job.record, "calls.log"))

    @property
    def stuck(self) -> bool:
        """Whether a rename onto one of the three names was made, and later ones were refused."""
        renames = [call.result for call in self.calls if call.kind == "rename" and call.new_path.name in NAMES]
        return 0 in renames and None in renames[renames.index(0) :]

    @property
    def saves(self) -> list[dict[str, Any]]:
        """What the run recorded of its saves: lines with `event` begin, end or failed, and `step`."""
        return [line for line in read_record(self.job) if "step" in line]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The digests of every rank's batch, by the order of steps, where the job asks for them."""
        notes = [line for line in read_record(self.job) if line["event"] == "rows"]
        ranks = [[note["digest"] for note in notes if note["rank"] == rank] for rank in range(self.job.world_size)]
        return list(zip(*ranks, strict=False))

    @property
    def output(self) -> str:
        path = Path(self.job.output or Path(self.job.record, "output.txt"))
        return path.read_text(errors="replace") if path.is_file() else ""

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.job.record)


class Lineage:
    def __init__(self, run: Callable[[Job], Outcome], topics: Path, scratch: Path, world_size: int = 1):
        """`run` is a Server's or `torchrun`; `scratch` is a folder for everything."""
        self.run, self.scratch, self.world_size = run, scratch, world_size
        self.numbers = itertools.count()
        scratch.mkdir(exist_ok=True)
        train = {"save_interval_minutes": 1e-9, "per_gpu_batch_size": 8 // world_size}
        self.preset = tiny_values(topics, train=train)
        whole = self._start(self._folder())
        assert whole.outcome.statuses == [0] * len(whole.outcome.statuses), whole.output[-3000:]
        self.seconds = whole.outcome.seconds
        self.truth = newest(whole.folder)
        self.files = kinds_of_files(whole.folder)
        begun = self._start(self._folder(), at_step=SAVED + 1, action=Action.KILL_BEFORE, number=1)
        assert -9 in begun.outcome.statuses, begun.output[-3000:]
        self.beginning = begun.folder
        assert newest(self.beginning).snapshot.progress["step"] == SAVED

    def by(self, run: Callable[[Job], Outcome]) -> "Lineage":
        """The same lineage, its trials run in another way."""
        other = copy.copy(self)
        other.run = run
        return other

    def trial(self, *, fresh: bool = False, folder: Path | None = None, **fault: Any) -> Trial:
        """Runs on from the beginning, or from nothing, with the fault of a Job. `folder` is used as it is."""
        if folder is None:
            folder = self._folder()
            if not fresh:
                duplicate(self.beginning, folder)
        return self._start(folder, **fault)

    def file_calls(self, **options: Any) -> list[Call]:
        """The file calls from the begin of a save to the next one's, in a run without a fault."""
        trial = self.trial(action=Action.COUNT, **options)
        assert not any(trial.outcome.statuses), trial.output[-3000:]
        calls = trial.calls
        trial.remove()
        return calls

    def go_on(self, trial: Trial) -> list[str]:
        """Starts again with no fault and no other preparation; returns what is wrong with what comes of it."""
        before = self._folder()
        if trial.folder.exists():
            duplicate(trial.folder, before)
        again = self._start(trial.folder)
        if any(again.outcome.statuses):
            return [f"the next start ended with {again.outcome.statuses}: {again.output[-1000:]}"]
        begun = [line["step"] for line in trial.saves if line["event"] == "begin"]
        ended = [line["step"] for line in trial.saves if line["event"] == "end"]
        resumed = [event["step"] for event in events_of(trial.folder, "resume")]
        at = resumed[-1] if resumed else 0
        problems = []
        if ended and at < max(ended):
            problems.append(f"the save of step {max(ended)} had ended, and the next start began at step {at}")
        if sum(step > at for step in set(begun)) > 1:
            problems.append(f"saves of steps {begun} had begun, and the next start began at step {at}")
        if at == STEPS:  # the run had come to its end, and the start began the next one
            problems += [part for part in differences(newest(before), self.truth) if part != "another evaluation"]
        else:
            problems += self.compare(trial.folder)
        shutil.rmtree(before, ignore_errors=True)
        shutil.rmtree(again.job.record)
        return problems

    def compare(self, folder: Path) -> list[str]:
        """What is different in a finished run's folder from the undisturbed run's."""
        problems = differences(newest(folder), self.truth)
        for name in NAMES:
            try:
                snapshots.read(folder / name)
            except snapshots.SnapshotError as error:
                problems.append(str(error))
        if (files := kinds_of_files(folder)) != self.files:
            problems.append(f"files {files} instead of {self.files}")
        return problems

    def _folder(self) -> Path:
        return self.scratch / f"checkpoints-{next(self.numbers)}"

    def _start(self, folder: Path, **fault: Any) -> Trial:
        job = Job(
            folder=str(folder),
            record=str(self.scratch / f"record-{next(self.numbers)}"),
            preset=self.preset,
            token_budget=STEPS * TOKENS_PER_STEP,
            world_size=self.world_size,
            **fault,
        )
        return Trial(job, self.run(job))


def duplicate(source: Path, target: Path) -> None:
    """A copy in which hard links to one file are again that."""
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def differences(ours: RestoredCheckpoint, theirs: RestoredCheckpoint) -> list[str]:
    """The parts of two generations that are not equal to the bit."""
    pairs = {
        "weights": (ours.snapshot.model, theirs.snapshot.model),
        "optimizer": (ours.optimizer, theirs.optimizer),
        "data position": (ours.data, theirs.data),
        "configuration": (ours.snapshot.config, theirs.snapshot.config),
        "tokenizer": (ours.snapshot.tokenizer, theirs.snapshot.tokenizer),
        **{key: (ours.snapshot.progress[key], theirs.snapshot.progress[key]) for key in PROGRESS},
    }
    return [f"another {part}" for part, (one, other) in pairs.items() if not equal(one, other)]


def kinds_of_files(folder: Path) -> Counter[str]:
    """How many files of a kind there are; a state's name holds its generation, which is another in every run."""
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return Counter(str(path if len(path.parts) == 1 else path.parent / f"*{path.suffix}") for path in paths)


def lose_unsynced(folder: Path, calls: list[Call]) -> None:
    """Takes away what a power failure may: the bytes written to a file since it was last synced."""
    unsynced: Counter[int] = Counter()
    for call in calls:
        if call.kind == "sync" and call.result == 0:
            unsynced.pop(call.inode, None)
        elif call.kind == "write" and call.result:
            unsynced[call.inode] += call.result
    for path in folder.rglob("*"):
        status = path.stat()
        if path.is_file() and (lost := unsynced.pop(status.st_ino, 0)):
            os.truncate(path, max(0, status.st_size - lost))
