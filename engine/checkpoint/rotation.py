"""A new file takes the first of several names; each older file moves one name along, and the last is gone."""

import contextlib
import itertools
import os
from pathlib import Path

import storage

Renames = list[tuple[Path, Path]]  # (source, target)


def rotate(fresh: Path, names: list[Path]) -> None:
    """Make `fresh` the first of `names`, what was there the second, and so on.

    With hard links no name is ever missing. At every moment each file but the last has some name, so a reader that
    takes the newest finds it. Raises OSError when a step fails; then every name is again what it was before.
    """
    existing = [path for path in names if path.exists()]
    older = [(path, after) for path, after in itertools.pairwise(names) if path in existing][::-1]
    spare: list[Path] = []

    def link(path: Path) -> Path:
        spare.append(storage.temporary(path))
        os.link(path, spare[-1])
        return spare[-1]

    try:
        try:
            # All that needs room on the disk comes first: after this a name only changes hands, there and back.
            undo = [(link(path), path) for path in existing]
            renames = [(link(path), after) for path, after in older]
        except OSError as error:
            if not storage.means_no_links(error):
                raise
            undo = None
            spare.append(storage.temporary(names[-1]))
            renames = [(path, after) for path, after in [(names[-1], spare[-1]), *older] if path in existing]
        _rename([*renames, (fresh, names[0])], undo)
    except OSError:
        for path in names:
            if path not in existing:
                path.unlink(missing_ok=True)
        raise
    finally:
        for path in spare:
            storage.discard(path)  # renaming a link onto the same file does nothing and leaves the link


def _rename(renames: Renames, undo: Renames | None) -> None:
    """Rename and sync in order. When that fails, do `undo`, or all but the last rename backwards, and raise OSError."""
    done: Renames = []
    try:
        for source, target in renames:
            os.replace(source, target)
            done.append((source, target))
            storage.sync(target.parent)
    except OSError:
        if undo is None:
            undo = [(target, source) for source, target in reversed(done) if (source, target) != renames[-1]]
        for source, target in undo:
            with contextlib.suppress(OSError):  # as much of it as the disk allows
                os.replace(source, target)
        raise
