"""The order of packed rows, and rows of several windows, in which a document's windows follow one another.

A model with memory tokens reads a row window by window, and sums up each for the next one. Which pieces share a window
is settled before, in packing.py, as it is without memory; here windows only get neighbours. So each piece has the
context that it would have had, and those of a long document have a memory besides.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

Piece = TypeVar("Piece", bound=Any)  # has `document` and `ids`


class Window(NamedTuple):
    """The pieces of a window, and whether the first goes on with the last one of the window before."""

    pieces: list
    continues: bool = False


def in_order(packed: Sequence[list[Piece]], keys: np.ndarray | None, seq_length: int) -> list[int]:
    """The numbers of the rows by their keys, but no piece before an earlier one of its document."""
    if keys is None:
        keys = np.asarray([min(piece.document for piece in row) for row in packed], dtype=np.float64)
    keys = np.array(keys[: len(packed)])
    full = [row[0].document if len(row[0].ids) == seq_length else -1 for row in packed]
    start = 0
    for end in range(1, len(packed) + 1):  # the full rows of one document follow each other here
        if end == len(packed) or full[end] != full[start]:
            if full[start] >= 0:
                keys[start:end].sort()
            start = end
    last: dict[int, float] = {}
    for number, row in enumerate(packed):
        keys[number] = key = max(keys[number], *(last.get(piece.document, -np.inf) for piece in row))
        last.update((piece.document, key) for piece in row)
    return np.argsort(keys, kind="stable").tolist()


def in_rows(packed: Sequence[list[Piece]], length: int, windows: int) -> list[list[Window]]:
    """Deal windows of `length` labels to rows of so many windows; the last row is filled with empty ones.

    `packed` holds each document's pieces in order, at most one in a window. A window that a piece fills to its end is
    followed by the one with the document's next piece, which then comes first in it, unless another document has that
    place. Chains are cut where a row ends.
    """
    chain = _chained(packed, length)
    rows = [chain[start : start + windows] for start in range(0, len(chain), windows)]
    for row in rows:
        row[0] = row[0]._replace(continues=False)
        row += [Window([])] * (windows - len(row))
    return rows


def numbered(packed: Sequence[list[Piece]], rows: Sequence[Sequence[Window]]) -> list[tuple[int, Piece]]:
    """The pieces, in the order of `packed`, each behind the number of the row that it stands in."""
    places = {id(piece): number for number, row in enumerate(rows) for window in row for piece in window.pieces}
    return [(places[id(piece)], piece) for pieces in packed for piece in pieces]


def _chained(packed: Sequence[list[Piece]], length: int) -> list[Window]:
    """All windows, each chain in one piece; chains in the order of their first windows."""
    windows = [list(pieces) for pieces in packed]
    places: dict[int, list[int]] = defaultdict(list)  # of a document: its windows
    for number, pieces in enumerate(windows):
        for piece in pieces:
            places[piece.document].append(number)
    following: dict[int, int] = {}
    taken: set[int] = set()
    for number, pieces in enumerate(windows):
        if sum(len(piece.ids) for piece in pieces) < length:
            continue
        document = pieces[-1].document
        later = places[document]
        at = later.index(number) + 1 if len(later) > 1 else 1
        if at < len(later) and (found := later[at]) not in taken:
            following[number] = found
            taken.add(found)
            windows[found].sort(key=lambda piece: piece.document != document)  # stable: the others keep their order
    chained = []
    for number in range(len(windows)):
        if number in taken:
            continue
        chained.append(Window(windows[number]))
        while (number := following.get(number, -1)) >= 0:
            chained.append(Window(windows[number], continues=True))
    return chained
