"""Documents -> rows of seq_length.

Every document's ids are followed by the end-of-text id, all are laid end to end, and the line is cut into rows of T
input ids and T labels. Neighbouring rows overlap by one id (a row's first input is the last label of the row before;
the very first input is an end-of-text id), so that every token is a label exactly once and nothing is dropped.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

IGNORE = -100  # the label of padding


class Packer:
    """A queue of documents from which rows are cut; knows where in which document the next row begins.

    `front` is (the position given with the first document not yet consumed, how many of its ids are consumed), or None
    when nothing is queued.
    """

    def __init__(self, seq_length: int, eos_id: int):
        self.seq_length = seq_length
        self.eos_id = eos_id
        self.queued = 0  # ids that are not yet labels
        self._documents: deque[tuple[np.ndarray, Any]] = deque()
        self._taken = 0
        self._previous = eos_id

    @property
    def front(self) -> tuple[Any, int] | None:
        return (self._documents[0][1], self._taken) if self._documents else None

    def add(self, ids: Sequence[int], position: Any, skip: int = 0) -> None:
        """Queue a document (without its end mark); `skip` ids of it were consumed before a restart."""
        document = np.asarray([*ids, self.eos_id], dtype=np.int64)
        assert skip == 0 or not self._documents, "only the first document after a restart can be half consumed"
        if skip:
            self._taken, self._previous = skip, int(document[skip - 1])
        self._documents.append((document, position))
        self.queued += len(document) - skip

    def row(self) -> tuple[np.ndarray, np.ndarray]:
        """Cut the next row: (T,) input ids and (T,) labels, int64; a row at the end of all text is padded."""
        pieces = [np.asarray([self._previous], dtype=np.int64)]
        wanted = min(self.seq_length, self.queued)
        missing = wanted
        while missing:
            document, _ = self._documents[0]
            piece = document[self._taken : self._taken + missing]
            pieces.append(piece)
            self._taken += len(piece)
            missing -= len(piece)
            if self._taken == len(document):
                self._documents.popleft()
                self._taken = 0
        self.queued -= wanted
        line = np.concatenate(pieces)
        self._previous = int(line[-1])
        inputs = np.full(self.seq_length, self.eos_id, dtype=np.int64)
        labels = np.full(self.seq_length, IGNORE, dtype=np.int64)
        inputs[:wanted], labels[:wanted] = line[:-1], line[1:]
        return inputs, labels


def pack_all(documents: Iterable[Sequence[int]], seq_length: int, eos_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Pack a finite list of documents: (N, T) input ids and (N, T) labels, the last row padded with IGNORE."""
    packer = Packer(seq_length, eos_id)
    for ids in documents:
        packer.add(ids, None)
    rows = []
    while packer.queued:
        rows.append(packer.row())
    if not rows:
        return np.zeros((0, seq_length), dtype=np.int64), np.zeros((0, seq_length), dtype=np.int64)
    inputs, labels = zip(*rows, strict=True)
    return np.stack(inputs), np.stack(labels)
