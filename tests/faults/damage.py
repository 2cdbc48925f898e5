"""Damage to saved files, and what a reader must make of it: the newest generation that is whole, or nothing.

An `Archive` is a folder of three generations, of which each damage gets a copy. Generations are counted by age: 0 is
the newest. Each has two files here, its snapshot and its state.
"""

import hashlib
import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from engine.checkpoint.folder import MIRROR, CheckpointFolder, RestoredCheckpoint
from engine.errors import CheckpointError
from tests.faults.lineage import NAMES, differences, duplicate

PAGE = 4096
LENGTHS: dict[str, Callable[[int], int]] = {
    "0": lambda size: 0,
    "1": lambda size: 1,
    "1/4": lambda size: size // 4,
    "1/2": lambda size: size // 2,
    "-1": lambda size: size - 1,
}


@dataclass(frozen=True)
class Damage:
    """What is done to a copy, and the generations that are not whole afterwards."""

    name: str
    apply: Callable[[Path], None]
    broken: frozenset[int]
    newest: int = 0  # generations younger than this are taken out of the copy before


class Archive:
    KINDS = ("pages", "truncations", "deletions", "swaps", "total")

    def __init__(self, folder: Path, scratch: Path):
        self.folder, self.scratch = folder, scratch
        self.numbers = itertools.count()
        states = sorted(path.relative_to(folder) for path in (folder / "state").glob("*.pt"))[::-1]
        self.files = list(zip(map(Path, NAMES), states, strict=True))  # by age: snapshot, state
        self.generations = [self._generation(age) for age in range(len(NAMES))]

    def make(self, damage: Damage, folder: Path) -> Path:
        """A damaged copy."""
        damage.apply(self._without(damage.newest, folder))
        return folder

    def problems(self, damage: Damage) -> list[str]:
        """Damages a copy and reads it; returns what was wrong with that."""
        copied = self.make(damage, self._fresh())
        before = tree(copied)
        whole = sorted(set(range(damage.newest, len(NAMES))) - damage.broken)
        try:
            restored = CheckpointFolder(copied).newest()
        except CheckpointError:
            found = [f"refused, with generation {whole[0]} whole"] if whole else []
            return found + (["refused, and files were changed"] if tree(copied) != before else [])
        except Exception as error:  # whatever else comes of it is a bug
            return [f"{type(error).__name__}: {error}"]
        finally:
            shutil.rmtree(copied)
        if restored is None:
            return ["taken for an empty folder"]
        used = self._age(restored)
        if restored.optimizer is None and not whole and restored.notes:
            truth = self.generations[used]
            restored = replace(restored, optimizer=truth.optimizer, data=truth.data)
        found = [f"generation {used} was loaded with {part}" for part in differences(restored, self.generations[used])]
        if whole and used > whole[0]:
            found.append(f"generation {used} was used, and {whole[0]} is whole")
        if used in damage.broken and not restored.notes:
            found.append(f"generation {used} was used without a word")
        return found

    def flips(self, count: int, rng: random.Random) -> Iterator[Damage]:
        """Single bits, each in the newest generation that there is in its copy."""
        for _ in range(count):
            age, part = rng.randrange(len(NAMES)), rng.randrange(2)
            path = self.files[age][part]
            bit = rng.randrange(8 * (self.folder / path).stat().st_size)
            yield Damage(f"bit {bit} of {path}", lambda f, p=path, b=bit: flip(f / p, b), frozenset({age}), age)

    def pages(self) -> Iterator[Damage]:
        """Each page of each file as zeros, one at a time."""
        for age, path in self._each_file():
            for start in range(0, (self.folder / path).stat().st_size, PAGE):
                if any((self.folder / path).read_bytes()[start : start + PAGE]):
                    name = f"a page of zeros at {start} of {path}"
                    yield Damage(name, lambda f, p=path, s=start: zero(f / p, s), frozenset({age}), age)

    def truncations(self) -> Iterator[Damage]:
        for age, path in self._each_file():
            for name, length in LENGTHS.items():
                size = length((self.folder / path).stat().st_size)
                yield Damage(f"{path} cut to {name}", lambda f, p=path, s=size: os.truncate(f / p, s), frozenset({age}))

    def deletions(self) -> Iterator[Damage]:
        """Each file and each pair of files; the mirror is the newest snapshot's second name."""
        files = [Path(MIRROR), *(path for _, path in self._each_file())]
        for gone in [*itertools.combinations(files, 1), *itertools.combinations(files, 2)]:
            lost = set(gone) if Path(MIRROR) in gone else set(gone) - {Path(NAMES[0])}
            broken = frozenset(age for age, path in self._each_file() if path in lost)
            name = f"without {' and '.join(map(str, gone))}"
            yield Damage(name, lambda f, g=gone: [(f / path).unlink() for path in g], broken)

    def swaps(self) -> Iterator[Damage]:
        """Each pair of snapshots, which leaves all generations whole; each pair of states; one state in two places."""
        for one, other in itertools.combinations(range(len(NAMES)), 2):
            for part, broken in ((0, frozenset()), (1, frozenset({one, other}))):
                paths = self.files[one][part], self.files[other][part]
                yield Damage(f"{paths[0]} and {paths[1]} swapped", lambda f, p=paths: swap(f / p[0], f / p[1]), broken)
        for one, other in itertools.permutations(range(len(NAMES)), 2):
            paths = self.files[one][1], self.files[other][1]
            name = f"{paths[0]} also as {paths[1]}"
            yield Damage(name, lambda f, p=paths: replace_file(f / p[0], f / p[1]), frozenset({other}))

    def total(self) -> Iterator[Damage]:
        """Every file damaged, in one way each time."""
        every, paths = frozenset(range(len(NAMES))), [path for _, path in self._each_file()]
        for name, harm in (
            ("one bit of", lambda path: flip(path, 4 * path.stat().st_size)),
            ("half of", lambda path: os.truncate(path, path.stat().st_size // 2)),
            ("nothing of", lambda path: os.truncate(path, 0)),
        ):
            yield Damage(f"{name} every file", lambda f, h=harm: [h(f / path) for path in paths], every)

    def _each_file(self) -> Iterator[tuple[int, Path]]:
        return ((age, path) for age, files in enumerate(self.files) for path in files)

    def _without(self, younger: int, folder: Path) -> Path:
        """A copy without so many of the youngest generations."""
        duplicate(self.folder, folder)
        for name in NAMES[:younger]:
            for path in folder.glob("*.pth"):  # the mirror too
                if path.read_bytes() == (self.folder / name).read_bytes():
                    path.unlink()
        return folder

    def _generation(self, age: int) -> RestoredCheckpoint:
        folder = self._without(age, self._fresh())
        restored = CheckpointFolder(folder).newest()
        shutil.rmtree(folder)
        assert restored.optimizer and restored.data
        return restored

    def _fresh(self) -> Path:
        return self.scratch / f"copy-{next(self.numbers)}"

    def _age(self, restored: RestoredCheckpoint) -> int:
        steps = [generation.snapshot.progress["step"] for generation in self.generations]
        return steps.index(restored.snapshot.progress["step"])


def tree(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file but the lock, which names whoever held it last."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def flip(path: Path, bit: int) -> None:
    _overwrite(path, bit // 8, bytes([path.read_bytes()[bit // 8] ^ 1 << bit % 8]))


def zero(path: Path, start: int) -> None:
    _overwrite(path, start, bytes(min(PAGE, path.stat().st_size - start)))


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def replace_file(source: Path, target: Path) -> None:
    target.unlink()
    shutil.copyfile(source, target)


def _overwrite(path: Path, start: int, new: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(new)
