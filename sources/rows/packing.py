"""Step 5 of a text's way: documents -> blocks of rows of seq_length.

Every document's ids are followed by the end-of-text id and cut into *pieces* of at most T ids; every id is a label
exactly once. A piece of n labels takes n positions of a row. Its inputs are what stands before each label, so a
document begins with an end-of-text id as input, and a continued one with the last id of the piece before.

Notable here
- `best_fit` (Ding et al., arXiv 2404.10830): whole rows of long documents first; then each row takes the largest piece
  that fits into what is left of it. Where holes would exceed MAX_WASTE of a block, a document is split to fill them.
- `pad`: one piece per row, the rest is padding.
- A piece that has waited for MAX_WAIT blocks begins a row of the next one, so none waits for a better fit for ever.
- A block's rows are permuted, but the pieces of one document stay in order.
- What a block leaves over is the packer's carry: about SLACK_ROWS rows of pieces, saved with the lane's state.
- For memory tokens a row has several windows of T labels, packed as rows of T are; windows.py puts them together.
"""

import base64
from bisect import bisect, insort
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, NamedTuple, NotRequired, TypedDict

import numpy as np

from sources.rows.windows import Window, in_order, in_rows, numbered

IGNORE = -100  # the label of padding
PADDING = -1  # in place of the id before a piece: what follows is padding, not a piece
SLACK_ROWS = 8  # more tokens than a block holds, so that its last rows still have pieces to choose from
MAX_WASTE = 0.004  # of a block's positions
MAX_WAIT = 2  # blocks that are packed without a finished piece; the next one has it

Packing = Literal["best_fit", "pad"]
IdType = type[np.uint16] | type[np.uint32]


class Piece(NamedTuple):
    """At most T consecutive label ids of a document, and the id before them."""

    document: int
    ids: np.ndarray
    previous: int
    since: int = 0  # how many blocks the packer had made before


class Carry(TypedDict):
    """The pieces that are in no row yet."""

    ids: str  # base64 of all pieces' ids, little-endian
    width: int  # bytes of an id
    seq_length: int  # for which the pieces were cut; 0: some of them were in rows, and are joined first
    pieces: list[list[int]]  # of each: number of its document, ids, id before the first
    open: bool  # whether the last piece's document goes on
    ages: NotRequired[list[int]]  # of each piece: blocks that it has waited for; older versions did not count them


@dataclass(frozen=True)
class RowBlock:
    """R packed rows of T labels, as they are sent between processes and cached."""

    ids: np.ndarray  # (R, T) uint16 or uint32: labels; the end-of-text id behind a row's last label
    lengths: np.ndarray  # (R,) int32: labels in each row
    pieces: np.ndarray  # (P, 3) int32, in order: row, first column, id before the first label or, in windows, PADDING

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def offsets(self) -> list[int]:
        """Each row's first index into `pieces`, and len(pieces) at the end."""
        return np.searchsorted(self.pieces[:, 0], np.arange(len(self) + 1)).tolist()

    def unpack(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return input ids, labels (int64, IGNORE: padding) and segment ids (int32, -1: padding), each (R, T)."""
        row, column, previous = self.pieces.T
        labels = self.ids.astype(np.int64)
        inputs = np.empty_like(labels)
        inputs[:, 1:] = labels[:, :-1]
        padding = previous == PADDING
        inputs[row, column] = np.where(padding, self.ids[row, column], previous)
        segments = np.zeros(labels.shape, dtype=np.int32)
        inner = column > 0
        segments[row[inner], column[inner]] = 1
        np.cumsum(segments, axis=1, out=segments)
        short = self.lengths < labels.shape[1]
        short[row[padding]] = False
        for number in np.nonzero(short)[0].tolist():
            labels[number, self.lengths[number] :] = IGNORE
            segments[number, self.lengths[number] :] = -1
        if padding.any():
            starts = row * labels.shape[1] + column
            padded = np.repeat(padding, np.diff(starts, append=labels.size)).reshape(labels.shape)
            labels[padded], segments[padded] = IGNORE, -1
        return inputs, labels, segments


def gather(spans: Sequence[tuple[RowBlock, int, int]]) -> RowBlock:
    """Join rows `first` to `last` - 1 of each (block, first, last) into one block."""
    shift, pieces = 0, []
    for block, first, last in spans:
        part = block.pieces[block.offsets[first] : block.offsets[last]].copy()
        part[:, 0] += shift - first
        pieces.append(part)
        shift += last - first
    ids = np.concatenate([block.ids[first:last] for block, first, last in spans])
    lengths = np.concatenate([block.lengths[first:last] for block, first, last in spans])
    return RowBlock(ids, lengths, np.concatenate(pieces))


def every(block: RowBlock, first: int, step: int) -> RowBlock:
    """Return a copy of rows `first`, `first` + `step`, ... of a block; `first` is below `step`."""
    pieces = block.pieces[block.pieces[:, 0] % step == first]  # a copy
    pieces[:, 0] //= step
    return RowBlock(block.ids[first::step].copy(), block.lengths[first::step].copy(), pieces)


class Packer:
    """Collects documents and packs them into blocks; `carry` is what another packer's `carry` returned. With several
    `windows` a row has so many of seq_length labels."""

    def __init__(
        self,
        seq_length: int,
        eos_id: int,
        dtype: IdType,
        packing: Packing = "best_fit",
        carry: Carry | None = None,
        windows: int = 1,
    ):
        self.seq_length, self.eos_id, self.dtype, self.packing = seq_length, eos_id, dtype, packing
        self.windows = windows
        self.tokens = 0  # of pieces that are complete
        self._full: deque[Piece] = deque()  # pieces that fill a row, in order
        self._short: deque[Piece] = deque()  # shorter ones, in order
        self._open: Piece | None = None  # the unfinished document's ids since its last full piece
        self._documents = 0
        self._blocks = 0  # made
        self.kept: list[list[tuple[int, Piece]]] | None = None  # of each block, once they are wanted; see `numbered`
        if carry:
            self._load(carry)

    def add(self, ids: np.ndarray, finished: bool = True) -> None:
        """Take in a document, or its next part; a finished one gets the end-of-text id."""
        before = self._open or Piece(self._documents, np.empty(0, dtype=self.dtype), self.eos_id)
        self._documents = max(self._documents, before.document + 1)
        end = [self.eos_id] if finished else []
        ids = np.concatenate([np.asarray(part, dtype=self.dtype) for part in (before.ids, ids, end)])
        self._cut(before._replace(ids=ids, since=self._blocks), finished)

    def end_document(self) -> None:
        """Finish the open document, if there is one, whose further parts will not come."""
        if self._open is not None:
            self.add(self._open.ids[:0])

    @property
    def rows_ready(self) -> int:
        """How many rows a block may have now: full ones, with pieces left to choose the last of them from."""
        if self.packing == "pad":
            return (len(self._full) + len(self._short)) // self.windows
        return (self.tokens // self.seq_length - SLACK_ROWS) // self.windows

    def has_block(self, rows: int) -> bool:
        """Whether enough is collected for a block of `rows` rows."""
        return self.rows_ready >= rows

    def block(self, rows: int, keys: np.ndarray | None) -> RowBlock:
        """Pack up to `rows` rows, fewer only when that uses everything up. `keys` (rows,) orders them; None keeps
        documents in order as far as packing allows."""
        rows *= self.windows
        waste = MAX_WASTE * min(rows * self.seq_length, self.tokens)
        begun = self._begin_rows(rows, waste)
        packed = [[self._full.popleft()] for _ in range(min(rows - len(begun), len(self._full)))]
        if self.packing == "pad":
            packed += begun
            packed += [[self._short.popleft()] for _ in range(min(rows - len(packed), len(self._short)))]
        else:
            packed += self._best_fit(begun, rows - len(packed), waste)
        self._blocks += 1
        self.tokens -= sum(len(piece.ids) for row in packed for piece in row)
        if self.windows == 1:
            made = [[Window(pieces)] for pieces in packed]
            order = in_order(packed, keys, self.seq_length)
        else:
            made = in_rows(packed, self.seq_length, self.windows)
            order = list(range(len(made))) if keys is None else np.argsort(keys[: len(made)], kind="stable").tolist()
        ordered = [made[number] for number in order]
        if self.kept is not None:
            in_turn = packed if self.windows > 1 else [packed[number] for number in order]
            self.kept.append(numbered(in_turn, ordered))
        return _layout(ordered, self.windows, self.seq_length, self.eos_id, self.dtype)

    def carry(self, returned: Sequence[Piece] = ()) -> Carry | None:
        """Return what is left over as a JSON value, behind pieces of `kept` rows that come back."""
        pieces = [*returned, *self._full, *self._short, *([self._open] if self._open else [])]
        if not pieces:
            return None
        numbers = {document: number for number, document in enumerate(sorted({piece.document for piece in pieces}))}
        ids = np.concatenate([piece.ids for piece in pieces]).astype("<u4" if self.dtype == np.uint32 else "<u2")
        return {
            "ids": base64.b64encode(ids.tobytes()).decode(),
            "width": ids.itemsize,
            "seq_length": 0 if returned else self.seq_length,
            "pieces": [[numbers[piece.document], len(piece.ids), int(piece.previous)] for piece in pieces],
            "open": self._open is not None,
            "ages": [self._blocks - piece.since for piece in pieces],
        }

    def _load(self, carry: Carry) -> None:
        ids = np.frombuffer(base64.b64decode(carry["ids"]), dtype=f"<u{carry['width']}").astype(self.dtype)
        ends = np.cumsum([0, *(length for _, length, _ in carry["pieces"])])
        ages = carry.get("ages", [0] * len(carry["pieces"]))
        pieces = [
            Piece(document, ids[start:end], previous, -age)
            for (document, _, previous), (start, end), age in zip(carry["pieces"], pairwise(ends), ages, strict=True)
        ]
        self._documents = 1 + max(piece.document for piece in pieces)
        if carry["seq_length"] != self.seq_length:
            pieces = _join(pieces)
        unfinished = pieces[-1].document if carry["open"] else None
        for piece in pieces:
            self._cut(piece, finished=piece.document != unfinished)

    def _cut(self, whole: Piece, finished: bool) -> None:
        """Cut a document's next ids into pieces; the rest of an unfinished one stays open."""
        self._open, previous = None, whole.previous
        end = len(whole.ids) // self.seq_length * self.seq_length
        for start in range(0, end, self.seq_length):
            piece = whole._replace(ids=whole.ids[start : start + self.seq_length], previous=previous)
            self._full.append(piece)
            previous = int(piece.ids[-1])
        self.tokens += end
        rest = whole._replace(ids=whole.ids[end:], previous=previous)
        if not finished:
            self._open = rest
        elif len(rest.ids):
            self._short.append(rest)
            self.tokens += len(rest.ids)

    def _divided(self) -> tuple[list[Piece], list[Piece]]:
        """Return the short pieces before which all of their documents is packed, and the others, each in order."""
        behind = {piece.document for piece in self._full}
        ready = [piece for piece in self._short if piece.document not in behind]
        return ready, [piece for piece in self._short if piece.document in behind]

    def _begin_rows(self, rows: int, waste: float) -> list[list[Piece]]:
        """Put the pieces that may not wait any longer into up to `rows` rows, the oldest first.

        Of documents of many rows, few pieces are short. Where all of them could not fill these rows but for `waste`
        positions, the last rows wait until there are more.
        """
        ready, _ = self._divided()
        due = [piece for piece in ready if self._blocks - piece.since >= MAX_WAIT]
        begun: list[list[Piece]] = []
        rooms: list[int] = []
        for piece in sorted(due, key=lambda piece: (piece.since, -len(piece.ids))):
            fitting = [number for number, room in enumerate(rooms) if room >= len(piece.ids)]
            if fitting and self.packing != "pad":
                best = min(fitting, key=rooms.__getitem__)
                begun[best].append(piece)
                rooms[best] -= len(piece.ids)
            elif len(begun) < rows:
                begun.append([piece])
                rooms.append(self.seq_length - len(piece.ids))
        if self.packing != "pad":
            begun = begun[: int((sum(len(piece.ids) for piece in ready) + waste) // self.seq_length)]
        taken = {id(piece) for row in begun for piece in row}
        self._short = deque(piece for piece in self._short if id(piece) not in taken)
        return begun

    def _best_fit(self, begun: list[list[Piece]], rows: int, waste: float) -> list[list[Piece]]:
        """Pack short pieces into up to `rows` rows, `begun` first, of which `waste` positions may stay empty."""
        ready, others = self._divided()
        # By length; of one length the first piece comes last, and is taken first.
        shelf = sorted((len(piece.ids), -number, piece) for number, piece in enumerate(ready))
        packed: list[list[Piece]] = []
        while len(packed) < rows and (shelf or len(packed) < len(begun)):
            row = begun[len(packed)] if len(packed) < len(begun) else []
            room = self.seq_length - sum(len(piece.ids) for piece in row)
            while fitting := bisect(shelf, (room, 1)):
                length, _, piece = shelf.pop(fitting - 1)
                row.append(piece)
                room -= length
            if room > waste and shelf:
                length, _, piece = shelf.pop()
                row.append(piece._replace(ids=piece.ids[:room]))
                rest = piece._replace(ids=piece.ids[room:], previous=int(piece.ids[room - 1]))
                insort(shelf, (length - room, -len(ready) - len(packed), rest))
                room = 0
            waste -= room
            packed.append(row)
        self._short = deque([*(piece for _, _, piece in reversed(shelf)), *others])
        return packed


def _layout(rows: list[list[Window]], windows: int, seq_length: int, eos_id: int, dtype: IdType) -> RowBlock:
    """Fill the arrays. A piece that goes on with the window before is no piece of its own there."""
    ids = np.full((len(rows), windows * seq_length), eos_id, dtype=dtype)
    lengths = np.zeros(len(rows), dtype=np.int32)
    pieces = []
    for position, row in enumerate(rows):
        for number, window in enumerate(row):
            column = number * seq_length
            for piece in window.pieces:
                end = column + len(piece.ids)
                ids[position, column:end] = piece.ids
                if column > number * seq_length or not window.continues:
                    pieces.append((position, column, piece.previous))
                lengths[position] += end - column
                column = end
            if windows > 1 and column < (number + 1) * seq_length:
                pieces.append((position, column, PADDING))
    return RowBlock(ids, lengths, np.asarray(pieces, dtype=np.int32).reshape(-1, 3))


def _join(pieces: list[Piece]) -> list[Piece]:
    """Join the pieces of each document, which hold consecutive ids of it, at the place of its last one."""
    joined: dict[int, Piece] = {}
    for piece in pieces:
        before = joined.pop(piece.document, None)
        joined[piece.document] = (
            piece if before is None else before._replace(ids=np.concatenate([before.ids, piece.ids]))
        )
    return list(joined.values())


def pack_all(
    documents: Iterable[np.ndarray],
    seq_length: int,
    eos_id: int,
    dtype: IdType,
    packing: Packing = "best_fit",
    windows: int = 1,
) -> RowBlock:
    """Pack a finite list of documents into one block."""
    packer = Packer(seq_length, eos_id, dtype, packing, windows=windows)
    for ids in documents:
        packer.add(ids)
    return packer.block(max(1, packer.tokens), None)


def ids_dtype(vocab_size: int) -> IdType:
    """Return the narrowest type that holds every id."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32
