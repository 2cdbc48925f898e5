"""Which file has which name: a new generation moves the older ones along, and a repair gives the names back."""

import contextlib
import itertools
import os
import time
from pathlib import Path

import storage
from engine.checkpoint.load import FolderScan, VerifiedFile
from engine.checkpoint.names import GENERATIONS, MIRROR, NAMES

ARCHIVE = "archive"

Renames = list[tuple[Path, Path]]  # (source, target)


def rotate(fresh: Path, names: list[Path]) -> None:
    """Make `fresh` the first of `names`, what was there the second, and so on; what was last is gone.

    With hard links no name is ever missing. At every moment each file but the last has some name, so a reader that
    takes the newest finds it. Raises OSError when a step fails; then every name is again what it was before.
    """
    existing = [path for path in names if path.exists()]
    older = [(path, after) for path, after in itertools.pairwise(names) if path in existing][::-1]
    with contextlib.ExitStack() as spares:

        def link(path: Path) -> Path:
            second_name = storage.temporary(path)
            spares.callback(storage.discard, second_name)  # to rename a link onto the same file leaves the link
            os.link(path, second_name)
            return second_name

        try:
            # All that needs room on the disk comes first: after this a name only changes hands, there and back.
            undo = [(link(path), path) for path in existing]
            renames = [(link(path), after) for path, after in older]
        except OSError as error:
            if not storage.means_no_links(error):
                raise
            undo, aside = None, storage.temporary(names[-1])
            spares.callback(storage.discard, aside)
            renames = [(path, after) for path, after in [(names[-1], aside), *older] if path in existing]
        try:
            _rename([*renames, (fresh, names[0])], undo)
        except OSError:
            for path in set(names) - set(existing):
                path.unlink(missing_ok=True)
            raise


def _rename(renames: Renames, undo: Renames | None) -> None:
    """Rename and sync in order. When that fails, do `undo`, or the renames backwards, and raise OSError."""
    done: Renames = []
    try:
        for source, target in renames:
            os.replace(source, target)
            done.append((source, target))
            storage.sync(target.parent)
    except OSError:
        for source, target in [(after, path) for path, after in reversed(done)] if undo is None else undo:
            with contextlib.suppress(OSError):  # as much of it as the disk allows
                os.replace(source, target)
        raise


def arrange(folder: Path, found: FolderScan, kept: list[VerifiedFile], why: str) -> list[str]:
    """Give the names to the `kept` generations, newest first; other files under these names go to archive/TIME-`why`.

    Returns what was done, in a sentence, or nothing where all is in order. Raises OSError.
    """
    wanted = dict(zip(GENERATIONS, kept, strict=False)) | {MIRROR: kept[0]}
    digests = {name: file.sha256 for name, file in wanted.items()}
    changed = [name for name in NAMES if found.names.get(name, "") != digests.get(name, "")]
    if not changed:
        return []
    fresh = {name: storage.temporary(folder / name) for name in changed if name in wanted}
    for name, path in fresh.items():  # a second name for each file, before any name goes to another file
        storage.hard_link_or_copy(wanted[name].path, path)
    done = f"Put in order: {', '.join(changed)}."
    unwanted = [name for name in changed if name in found.names and found.names[name] not in digests.values()]
    if unwanted:
        aside = archive_folder(folder, f"-{why}")
        for name in unwanted:
            os.rename(folder / name, aside / name)
        done += f" The files that had these names are in {aside}."
    _rename([(path, folder / name) for name, path in fresh.items()], undo=[])
    for name in set(changed) - wanted.keys():
        (folder / name).unlink(missing_ok=True)
    storage.sync(folder)
    storage.sweep(folder)
    return [done]


def archive_folder(folder: Path, ending: str = "") -> Path:
    """Make archive/TIME in `folder` and return it. Raises OSError."""
    target = folder / ARCHIVE / (time.strftime("%Y%m%d-%H%M%S") + ending)
    storage.refuse_escape(folder / ARCHIVE, folder)
    while target.exists():
        target = target.with_name(f"{target.name}-more")
    target.mkdir(parents=True)
    return target
